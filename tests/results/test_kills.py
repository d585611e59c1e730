"""After SIGKILL at any moment of a write, readers see the old or the new content, and another process can write."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
import torch

from ticket_search.results.reading import load_results
from ticket_search.results.tables import Table, Tables
from ticket_search.runs.directory import check_same_search, held_by, hold, read_run, read_spec
from ticket_search.search.suggestions import Suggestion, SuggestionRecord
from ticket_search.storage.folder import open_folder
from ticket_search.storage.lease import Lease, Leases
from ticket_search.store.level_store import Entry, LevelStore

SCHEMA = pa.schema([("id", pa.string()), ("n", pa.int32()), ("x", pa.float64())], {"ticket_search.schema_version": "1"})
KEY = "ab12"
#: When to kill the process: once half of the temporary file has been written, once all of it has been written, or once
#: it has been renamed but the folder has not been synced.
MOMENTS = ["half", "aside", "renamed"]
SUGGESTIONS = [Suggestion(number=n, values={"pruning_rate": 0.5}, seed=n, trajectory_id=f"t{n}") for n in range(4)]


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def killed(target, moment, act, *arguments):
    """Call `act`, and kill this child process at `moment` while it writes a file whose name contains `target`."""
    sync, replace = os.fsync, os.replace

    def name_of(handle):
        return Path(f"/proc/self/fd/{handle}").readlink().name

    def fsync(handle):
        name = name_of(handle)
        if moment in ("half", "line") and target in name:
            if moment == "half":
                os.truncate(handle, os.fstat(handle).st_size // 2)
            die()
        sync(handle)

    def rename(source, to):
        if moment != "aside" or target not in Path(to).name:
            replace(source, to)
        if moment in ("aside", "renamed") and target in Path(to).name:
            die()

    os.fsync, os.replace = fsync, rename
    act(*arguments)
    os._exit(1)  # reached only if the process was not killed


@pytest.fixture(scope="module")
def kill():
    """A function that runs ``killed(target, moment, act, ...)`` in a child forked from a process without threads."""
    context = multiprocessing.get_context("forkserver")
    ours = ("results.reading", "results.tables", "search.run_directory", "search.suggestions", "store.level_store")
    context.set_forkserver_preload(["pytest", *(f"ticket_search.{name}" for name in ours)])

    def run(*arguments):
        child = context.Process(target=killed, args=arguments)
        child.start()
        child.join(60)
        assert child.exitcode == -signal.SIGKILL

    return run


def leftovers(folder):
    return [path.name.split(".")[1] for path in Path(folder).rglob(".*.partial")]


def table(folder):
    return Table(folder, SCHEMA, ("id", "n"), capacity=3)


def rows(numbers, x=0.0):
    return [{"id": "a", "n": n, "x": x} for n in numbers]


def put(folder, numbers, x=0.0):
    opened = table(folder)
    for row in rows(numbers, x):
        opened.put(row)
    opened.flush()


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize(
    ("before", "put_in_the_child", "chunk", "after"),
    [
        (rows(range(4)), ([4], 1.0), "part-00001", [*rows(range(4)), *rows([4], 1.0)]),
        (rows(range(7)), ([1], 1.0), "part-00000", [*rows([0]), *rows([1], 1.0), *rows(range(2, 7))]),
        (rows(range(3)), ([3], 1.0), "part-00001", [*rows(range(3)), *rows([3], 1.0)]),
        ([], ([], 1.0), "part-00000", []),
    ],
    ids=["the last chunk", "a full chunk", "a new chunk", "an empty table's first"],
)
def test_killed_while_a_table_is_written(kill, tmp_path, moment, before, put_in_the_child, chunk, after):
    if before:
        put(tmp_path, range(len(before)))
    kill(chunk, moment, put, tmp_path, *put_in_the_child)
    if before or moment == "renamed":
        assert pd.read_parquet(tmp_path).to_dict("records") == (after if moment == "renamed" else before)
    assert leftovers(tmp_path) == ([] if moment == "renamed" else [chunk])
    put(tmp_path, *put_in_the_child)
    assert pd.read_parquet(tmp_path).to_dict("records") == after
    assert leftovers(tmp_path) == []


def flush(run_dir, numbers):
    tables = Tables(run_dir, {})
    for n in numbers:
        tables.trajectories.put({"trajectory_id": f"t{n}", "levels": 1})
        tables.levels.put({"trajectory_id": f"t{n}", "level": 0, "level_key": f"k{n}"})
        tables.curves.put_group([{"trajectory_id": f"t{n}", "level": 0, "iteration": i} for i in (10, 20)])
        tables.layers.put_group([{"trajectory_id": f"t{n}", "level": 0, "name": name} for name in "ab"])
    tables.flush()


def test_killed_between_two_tables_no_row_refers_to_a_missing_one(kill, tmp_path):
    """A kill between the writes of two tables may leave `levels` ahead of `trajectories`, but never behind."""
    flush(tmp_path, [0])
    seen = []
    for nth in range(1, 5):
        kill("part-00000", "renamed", _flush_and_die_at, tmp_path, nth, nth)
        found = load_results(tmp_path)
        curves, layers, levels, trajectories = (
            set(frame["trajectory_id"]) for frame in (found.curves, found.layers, found.levels, found.trajectories)
        )
        assert trajectories <= levels <= layers
        assert levels <= curves
        assert not any(frame.duplicated().any() for frame in (found.curves, found.layers, found.levels))
        seen.append((len(curves), len(layers), len(levels), len(trajectories)))
    assert seen == [(2, 1, 1, 1), (3, 2, 1, 1), (4, 3, 2, 1), (5, 4, 3, 2)]
    flush(tmp_path, range(5))
    assert [len(frame) for frame in vars(load_results(tmp_path)).values()] == [5, 5, 10, 10, 0, 0]


def _flush_and_die_at(run_dir, number, nth):
    """Add the rows of a trajectory and flush them so that the process is killed at the `nth` rename."""
    dying, plain, count = os.replace, os.rename, iter(range(1, 99))
    os.replace = lambda source, to: (dying if next(count) == nth else plain)(source, to)
    flush(run_dir, [number])


@pytest.mark.parametrize("moment", ["half", "line"])
@pytest.mark.parametrize("before", [0, 2], ids=["the first", "a later one"])
def test_killed_while_a_suggestion_is_recorded(kill, tmp_path, moment, before):
    """Readers ignore an incomplete last line, and the next append replaces it."""
    for suggestion in SUGGESTIONS[:before]:
        SuggestionRecord(tmp_path).append(suggestion)
    kill("suggestions", moment, _append, tmp_path, SUGGESTIONS[before], before)
    there = before + (moment == "line")
    if moment == "half" and before:
        assert not (tmp_path / "suggestions.jsonl").read_bytes().endswith(b"\n")
    assert SuggestionRecord(tmp_path).read() == SUGGESTIONS[:there]
    SuggestionRecord(tmp_path).append(SUGGESTIONS[there])
    assert SuggestionRecord(tmp_path).read() == SUGGESTIONS[: there + 1]


def _append(run_dir, suggestion, before):
    """Append a suggestion such that a kill truncates half of the new line, not half of the whole file."""
    size = (run_dir / "suggestions.jsonl").stat().st_size if before else 0
    truncate = os.truncate
    os.truncate = lambda handle, _: truncate(handle, (size + os.fstat(handle).st_size) // 2)
    SuggestionRecord(run_dir).append(suggestion)


def start(run_dir, spec):
    with hold(open_folder(run_dir), spec):
        pass


@pytest.fixture
def spec(search):
    return search({"pruning_rate": [0.5]}, sampler="grid", trials=None)


@pytest.fixture
def more(search):
    """The search `spec` with another value for a setting that may be changed when the search is resumed."""
    return search({"pruning_rate": [0.5]}, sampler="grid", trials=None, max_concurrent=1)


@pytest.mark.parametrize(
    ("file", "moment"),
    [
        pytest.param("search.yaml", "half"),
        pytest.param("search.yaml", "aside"),
        ("search.yaml", "renamed"),
        ("run.json", "half"),
        ("run.json", "aside"),
        pytest.param("run.json", "renamed"),
        *(("run.", moment) for moment in MOMENTS),
    ],
)
def test_killed_while_a_run_directory_is_created(kill, spec, tmp_path, file, moment):
    folder = open_folder(tmp_path / "run")
    kill(file, moment, start, tmp_path / "run", spec)
    if folder.read("search.yaml") is not None:
        assert read_spec(folder) == spec
    run = read_run(folder)
    assert held_by(folder) is None
    check_same_search(folder, spec)
    with hold(folder, spec) as held:
        assert run in (None, held.run)
    assert read_spec(folder) == spec
    assert [path.name for path in (tmp_path / "run").iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_while_a_run_directory_is_resumed(kill, spec, more, tmp_path, moment):
    folder = open_folder(tmp_path / "run")
    start(tmp_path / "run", spec)
    run = read_run(folder)
    kill("search.yaml", moment, start, tmp_path / "run", more)
    assert read_spec(folder) == (more if moment == "renamed" else spec)
    assert read_run(folder) == run
    with hold(folder, more) as held:
        assert held.run == run
    assert read_spec(folder) == more
    assert [path.name for path in (tmp_path / "run").iterdir() if path.name.startswith(".")] == []


def entry(number):
    return Entry(record={"number": number}, tensors={"w": torch.full((50,), float(number))})


def save(root, number):
    LevelStore(root).save(KEY, entry(number))


def save_checkpoint(root, number):
    LevelStore(root).checkpoint(KEY).save(entry(number))


def number(found):
    return found and found.record["number"]


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("before", [None, 1], ids=["new", "replaced"])
@pytest.mark.parametrize("place", ["entry", "checkpoint"])
def test_killed_while_an_entry_or_checkpoint_is_saved(kill, tmp_path, moment, before, place):
    events = []
    store = LevelStore(tmp_path, lambda event, **fields: events.append(event))
    act, opened = {"entry": (save, store), "checkpoint": (save_checkpoint, store.checkpoint(KEY))}[place]
    load = (lambda: store.load(KEY)) if place == "entry" else opened.load
    if before:
        act(tmp_path, before)
    kill(KEY, moment, act, tmp_path, 2)
    assert number(load()) == (2 if moment == "renamed" else before)
    act(tmp_path, 3)
    assert number(load()) == 3
    assert events == []


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_while_a_level_is_saved_it_is_recomputed_or_found(kill, tmp_path, moment):
    kill("safetensors", moment, _compute, tmp_path)
    claim = LevelStore(tmp_path).claim(KEY)
    if moment == "renamed":
        assert number(claim) == 2
    else:
        with claim:
            assert number(claim.save(entry(3))) == 3
    LevelStore(tmp_path).tidy(KEY)
    assert Leases(open_folder(tmp_path / "leases")).names() == []
    assert leftovers(tmp_path) == []


def _compute(root):
    with LevelStore(root).claim(KEY) as claim:
        claim.save(entry(2))


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_while_a_claim_is_made(kill, tmp_path, moment):
    leases = Leases(open_folder(tmp_path))
    kill(KEY, moment, _claim, tmp_path)
    assert leases.owner(KEY) is None
    assert leases.names() == ([KEY] if moment == "renamed" else [])
    with leases.try_acquire(KEY) as lease:
        assert isinstance(lease, Lease)
        assert len(lease.broken) == (moment == "renamed")
    assert leases.names() == []


def _claim(folder):
    Leases(open_folder(folder)).try_acquire(KEY)


@pytest.fixture
def read_only_disk(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    return small_disk


@pytest.mark.parametrize("option", ["--output", "--store"])
def test_a_read_only_disk_is_refused_at_once_and_nothing_is_left_behind(read_only_disk, tmp_path, option):
    command = [sys.executable, "-m", "ticket_search.cli", "run", "digits", option, str(read_only_disk / "x")]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (said.returncode, said.stdout) == (2, "")
    assert said.stderr == f"error: cannot write to '{read_only_disk}/x': Read-only file system\n"
    assert list(read_only_disk.iterdir()) == []
    assert list(tmp_path.iterdir()) == [read_only_disk]


def test_a_run_directory_that_became_read_only_is_refused_and_can_be_read(small_disk, spec, tmp_path):
    start(small_disk / "run", spec)
    flush_one = Tables(small_disk / "run", spec.space)
    flush_one.flush()
    before = sorted(path for path in small_disk.rglob("*"))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    cli = [sys.executable, "-m", "ticket_search.cli"]
    said = subprocess.run([*cli, "resume", small_disk / "run"], cwd=tmp_path, capture_output=True, text=True)
    assert (said.returncode, said.stdout) == (2, "")
    assert said.stderr == f"error: cannot write to '{small_disk}/run': Read-only file system\n"
    assert sorted(path for path in small_disk.rglob("*")) == before
    said = subprocess.run([*cli, "status", small_disk / "run", "--json"], capture_output=True, text=True)
    assert (said.returncode, json.loads(said.stdout)["levels"]) == (0, 0)
