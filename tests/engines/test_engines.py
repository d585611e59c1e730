"""With every engine, a search must produce the same tables and handle failures in the same way."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import pandas as pd
import pytest

from ticket_search import load_results
from ticket_search.engines.engine import NAMES, open_engine
from ticket_search.engines.place import Place
from ticket_search.engines.scratch import scratch_folder
from ticket_search.engines.worker import end_of
from ticket_search.engines.worker_process import how_it_ended, visible_gpus
from ticket_search.errors import SpecError, StorageError, TicketSearchError
from ticket_search.launch.run import run_search
from ticket_search.results.events import read_events
from ticket_search.results.schema import KEYS
from ticket_search.runs.directory import request_stop
from ticket_search.search.driver import SearchDriver
from ticket_search.search.suggestions import SuggestionRecord
from ticket_search.storage.folder import open_folder

USER_MODULE = """
import os, signal
from pathlib import Path
from torch import nn

def network(image_shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, classes))

def broken(image_shape, classes):
    raise RuntimeError("no such layer: 42")

class Leaves(nn.Sequential):
    def forward(self, images):
        if self.training and len(images) > 2:
            raise SystemExit(3)
        return super().forward(images)

def leaves(image_shape, classes):
    return Leaves(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, classes))

def killed_once(image_shape, classes):
    marker = Path(os.environ["KILLED_ONCE"])
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return network(image_shape, classes)

def always_killed(image_shape, classes):
    os.kill(os.getpid(), signal.SIGKILL)
"""
#: Settings for tests that need only one worker, because starting a second one takes seconds.
ONE_WORKER = {"sampler": "grid", "trials": None, "max_concurrent": 1}
#: A script that runs a search and kills its own process once four levels have finished.
RUN_AND_DIE = """
import os, signal, sys, threading, time
from pathlib import Path
from ticket_search.config.loading import load_search
from ticket_search.launch.run import run_search
from ticket_search.results.events import read_events

space, output, engine, *address = sys.argv[1:]

def watch():
    while sum(event["event"] == "level_finished" for event in read_events(output)) < 4:
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGKILL)

threading.Thread(target=watch, daemon=True).start()
run_search(load_search(Path(space)), output, engine=engine, address=address[0] if address else None)
"""


@pytest.fixture(params=NAMES)
def engine(request):
    """The name of each engine in turn. Searches with Ray use the Ray cluster of the test session."""
    if request.param == "ray":
        request.getfixturevalue("ray_address")
    return request.param


@pytest.fixture(params=["processes", "ray"])
def engine_of_processes(request):
    """The name of each engine that survives the death of a worker, in turn."""
    if request.param == "ray":
        request.getfixturevalue("ray_address")
    return request.param


@pytest.fixture(scope="module")
def user_module(tmp_path_factory):
    """The folder of a user's module. It is on the import path of this process and of the workers."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "engine_networks.py").write_text(USER_MODULE)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def tpe_search(search):
    """A search whose suggestions depend on earlier results, so the order of all events matters."""
    return search(
        {"pruning_rate": {"low": 0.3, "high": 0.8}, "strategy": ["layerwise", "global"], "rewind_iteration": [0, 20]},
        base={"controls": {"kinds": ["random_reinit"], "levels": "last"}},
        seeds=(0, 1),
        trials=6,
        max_concurrent=1,
        early_stopping=None,
    )


@pytest.fixture(scope="module")
def reference(tpe_search, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("reference") / "run"
    run_search(tpe_search, run_dir, engine="inline")
    return run_dir


def tables_of(run_dir):
    """Return all tables without the training time, which differs between two runs of the same search."""
    results = load_results(run_dir)
    return {name: getattr(results, name).drop(columns="train_seconds", errors="ignore") for name in KEYS}


def assert_same_tables(one, other):
    for name, table in tables_of(one).items():
        pd.testing.assert_frame_equal(table, tables_of(other)[name], check_exact=True)


def finished(run_dir):
    """Return how often each level finished training, by level key."""
    return Counter(event["level_key"] for event in read_events(run_dir) if event["event"] == "level_finished")


def run_unchecked(engine, spec, run_dir):
    """Run a search without the preflight checks, which would refuse a broken network."""
    folder = open_folder(run_dir)
    driver = SearchDriver(spec, folder)
    with open_engine(engine) as opened:
        opened.run(driver, Place(run_dir=folder, store=folder / "store", run_id=""), None)
    driver.flush()
    return load_results(run_dir)


def test_the_tables_are_bit_identical(engine, tpe_search, reference, tmp_path):
    progress = run_search(tpe_search, tmp_path / "run", engine=engine)
    assert progress.counts == {"running": 0, "completed": 6, "stopped": 0, "diverged": 0, "failed": 0}
    assert_same_tables(tmp_path / "run", reference)
    assert SuggestionRecord(tmp_path / "run").read() == SuggestionRecord(reference).read()
    assert set(finished(tmp_path / "run").values()) == {1}


def test_a_killed_and_resumed_search_has_the_same_tables(request, engine, tpe_search, reference, tmp_path):
    """The tables stay the same even if the run directory is moved before another process resumes the search."""
    (tmp_path / "space.yaml").write_text(tpe_search.to_yaml())
    here, there = tmp_path / "here", tmp_path / "there"
    arguments = [str(tmp_path / "space.yaml"), str(here), engine]
    if engine == "ray":
        arguments.append(request.getfixturevalue("ray_address"))
    killed = subprocess.run([sys.executable, "-c", RUN_AND_DIE, *arguments], capture_output=True, timeout=100)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    if engine != "inline":
        wait_until_workers_exit(here)
    assert 4 <= sum(finished(here).values()) < len(load_results(reference).levels)
    asked = SuggestionRecord(here).read()
    here.rename(there)
    assert run_search(tpe_search, there, engine=engine).done == 6
    assert_same_tables(there, reference)
    assert SuggestionRecord(there).read()[: len(asked)] == asked
    assert set(finished(there).values()) == {1}


def wait_until_workers_exit(run_dir, seconds=2.0):
    """Wait until no event has been written for `seconds`. Workers need a while to notice that their driver is dead."""
    last = time.monotonic()
    events = len(read_events(run_dir))
    while time.monotonic() - last < seconds:
        time.sleep(0.2)
        if len(read_events(run_dir)) != events:
            last, events = time.monotonic(), len(read_events(run_dir))


def test_a_trajectory_that_raises_fails_and_the_others_continue(engine, user_module, search, tmp_path):
    names = {"model.name": ["engine_networks:broken", "engine_networks:leaves", "engine_networks:network"]}
    results = run_unchecked(engine, search(names, seeds=(0, 1), **ONE_WORKER), tmp_path)
    trajectories = results.trajectories.set_index("model.name")
    leaves = trajectories.loc["engine_networks:leaves"]
    assert list(leaves["status"]) == ["failed"] * 2
    assert all("called sys.exit(3)" in reason for reason in leaves["reason"])
    assert list(trajectories.loc["engine_networks:network", "status"]) == ["completed"] * 2
    broken = trajectories.loc["engine_networks:broken"]
    assert list(broken["status"]) == ["failed"] * 2
    assert all("no such layer: 42" in reason for reason in broken["reason"])
    assert all("Traceback" in error for error in broken["error"])


class Unprintable(Exception):
    def __str__(self):
        raise ValueError


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Unprintable(), "Unprintable"),
        (ValueError("\n\nsecond"), "ValueError: second"),
        (ValueError(), "ValueError"),
        (ValueError("x" * 10**6), f"ValueError: {'x' * 288}..."),
    ],
)
def test_any_error_has_a_reason_of_one_line(error, reason):
    assert end_of(error).reason == reason


def test_a_diverging_trajectory_has_status_and_reason(engine, search, tmp_path):
    spec = search({"training.optimizer.lr": [1e30, 1e-3]}, seeds=(0,), **ONE_WORKER)
    progress = run_search(spec, tmp_path / "run", engine=engine)
    assert progress.counts["diverged"] == 1
    trajectories = load_results(tmp_path / "run").trajectories.set_index("training.optimizer.lr")
    assert trajectories.loc[1e30, "reason"] == "the loss of level 0 was not finite at iteration 20"
    assert list(trajectories["status"].sort_index()) == ["completed", "diverged"]


def test_early_stopping_stops_a_trajectory(engine, search, tmp_path):
    spec = search(
        {"pruning_rate": [0.9, 0.2]},
        base={"pruning.max_levels": 5, "pruning.min_density": 0.0001},
        seeds=(0,),
        **ONE_WORKER,
        early_stopping={"collapse": 0.2, "collapse_levels": 2},
    )
    run_search(spec, tmp_path / "run", engine=engine)
    trajectories = load_results(tmp_path / "run").trajectories.set_index("pruning_rate")
    assert trajectories.loc[0.9, "status"] == "stopped"
    assert trajectories.loc[0.9, "reason"].startswith("collapsed: 2 levels")
    assert trajectories.loc[0.9, "levels"] < 6 == trajectories.loc[0.2, "levels"]


def test_a_full_disk_gives_one_message_and_loses_no_finished_level(engine, search, small_disk):
    spec = search({"pruning_rate": [0.5, 0.6]}, seeds=(0, 1), **ONE_WORKER)
    filler = small_disk / "filler"
    filler.write_bytes(b"0" * (shutil.disk_usage(small_disk).free - 90_000))
    with pytest.raises(StorageError, match=r"cannot write '.*': No space left on device") as error:
        run_search(spec, small_disk / "run", engine=engine)
    assert "\n" not in str(error.value)
    filler.unlink()
    assert run_search(spec, small_disk / "run", engine="inline").counts["completed"] == 4
    assert len(load_results(small_disk / "run").levels) == 12
    assert set(finished(small_disk / "run").values()) == {1}


def test_a_stop_request_ends_the_search_between_levels_and_it_can_be_resumed(engine, search, tmp_path, monkeypatch):
    # The driver checks for stop requests at this interval.
    monkeypatch.setattr("ticket_search.search.driver._FLUSH_SECONDS", 0.1)
    base = {"pruning.max_levels": 20, "training.iterations": 200, "training.evaluate_every": 200}
    spec = search({"pruning_rate": [0.05]}, base=base, seeds=(0,), sampler="grid", trials=None)
    run_dir = open_folder(tmp_path / "run")

    def stop_after_the_first_level():
        while not finished(tmp_path / "run"):
            time.sleep(0.05)
        request_stop(run_dir)

    watch = threading.Thread(target=stop_after_the_first_level)
    watch.start()
    progress = run_search(spec, run_dir, engine=engine)
    watch.join()
    levels = len(load_results(run_dir).levels)
    assert (progress.stopped, progress.done) == (True, 0)
    assert 0 < levels < 21
    assert list((tmp_path / "run" / "store" / "leases").glob("*.json")) == []
    with pytest.raises(SpecError, match="no search is running in"):
        request_stop(run_dir)
    assert run_search(spec, run_dir, engine="inline").counts["completed"] == 1
    assert len(load_results(run_dir).levels) == 21
    assert set(finished(run_dir).values()) == {1}


def test_a_killed_workers_trajectory_is_restarted_and_completed(
    engine_of_processes, user_module, search, tmp_path, monkeypatch
):
    marker = user_module / f"killed_under_{engine_of_processes}"
    # Write the path into the source: Ray's workers do not see variables that are set after Ray has started.
    source = USER_MODULE.replace('os.environ["KILLED_ONCE"]', repr(str(marker)))
    (user_module / f"killed_{engine_of_processes}.py").write_text(source)
    names = {"model.name": [f"killed_{engine_of_processes}:killed_once"]}
    results = run_unchecked(engine_of_processes, search(names, seeds=(0,), sampler="grid", trials=None), tmp_path)
    assert marker.exists()
    assert list(results.trajectories["status"]) == ["completed"]
    assert list(results.levels["level"]) == [0, 1, 2]
    assert [event["event"] for event in read_events(tmp_path)].count("trajectory_restarted") == 1


def test_a_worker_that_always_dies_fails_its_trajectory(engine_of_processes, user_module, search, tmp_path):
    names = {"model.name": ["engine_networks:always_killed", "engine_networks:network"]}
    spec = search(names, seeds=(0,), max_failures=1, **ONE_WORKER)
    trajectories = run_unchecked(engine_of_processes, spec, tmp_path).trajectories.set_index("model.name")
    assert trajectories.loc["engine_networks:always_killed", ["status", "reason"]].tolist() == [
        "failed",
        "its worker died 2 times" + (": killed by SIGKILL" if engine_of_processes == "processes" else ""),
    ]
    assert trajectories.loc["engine_networks:network", "status"] == "completed"


@pytest.mark.parametrize(
    ("code", "how"),
    [
        (3, "exit code 3"),
        (0, "exit code 0"),
        (-11, "killed by SIGSEGV"),
        (-9, "killed by SIGKILL"),
        (-40, "killed by signal 40"),
    ],
)
def test_the_end_of_a_worker_in_words(code, how):
    assert how_it_ended(code) == how


class TestCalls:
    """Tests for calling an importable function in the workers."""

    def call(self, engine, search, function, calls, say=lambda line: None):
        spec = search({"pruning_rate": [0.5]}, seeds=(0,), sampler="grid", trials=None)
        with open_engine(engine) as opened:
            return opened.call(function, calls, spec, "done", say)

    def test_results_are_in_the_order_of_the_calls(self, engine, search):
        said = []
        assert self.call(engine, search, os.path.join, [("a", "b"), ("c", "d"), ("e", "f")], said.append) == [
            *("a/b", "c/d", "e/f"),
        ]
        assert said == ["done 1 of 3", "done 2 of 3", "done 3 of 3"]

    def test_an_exception_in_a_call_is_one_message(self, engine, search):
        with pytest.raises(TicketSearchError) as error:
            self.call(engine, search, int, [("3",), ("three",)])
        assert str(error.value) == "ValueError: invalid literal for int() with base 10: 'three'"

    def test_a_call_that_kills_its_workers_fails_in_the_end(self, engine_of_processes, search):
        with pytest.raises(TicketSearchError, match=r"die|crash|kill"):
            self.call(engine_of_processes, search, os._exit, [(9,)])


@pytest.mark.parametrize(
    ("engine", "address", "message"),
    [
        ("procesess", None, "unknown engine 'procesess' (did you mean 'processes'?); known: inline, processes, ray"),
        (
            "inline",
            "auto",
            "--address 'auto' is for engine 'ray', but the engine is 'inline'; leave --address out",
        ),
    ],
)
def test_a_bad_engine_or_address_is_refused_and_leaves_nothing_behind(search, tmp_path, engine, address, message):
    spec = search({"pruning_rate": [0.5]}, sampler="grid", trials=None)
    with pytest.raises(SpecError) as error:
        run_search(spec, tmp_path / "run", engine=engine, address=address)
    assert str(error.value) == message
    assert list(tmp_path.iterdir()) == []


def test_the_other_engines_open_without_ray():
    """The engines ``inline`` and ``processes`` open even if the package ``ray`` cannot be imported."""
    code = (
        "import sys\n"
        "class NoRay:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'ray':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name='ray')\n"
        "sys.meta_path.insert(0, NoRay())\n"
        "from ticket_search.engines.engine import open_engine\n"
        "from ticket_search.errors import SpecError\n"
        "import ticket_search.launch.run\n"
        "for name in ('inline', 'processes'):\n"
        "    with open_engine(name) as engine:\n"
        "        print(type(engine).__name__)\n"
        "try:\n"
        "    open_engine('ray').__enter__()\n"
        "except SpecError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "InlineEngine",
        "ProcessEngine",
        "engine 'ray' needs Ray: pip install 'ray[tune]', or use engine 'processes'",
    ]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 9, 15, 16])
def test_workers_that_share_gpus_fill_one_gpu_after_another(monkeypatch, n):
    """Exactly n workers share a GPU, even though a search space gives the share 1/n with only four decimals."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    share = 10_000 // n / 10_000
    assert [visible_gpus(slot, share) for slot in range(2 * n)] == [["0"]] * n + [["1"]] * n


def test_workers_with_several_gpus_get_consecutive_ones(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert [visible_gpus(slot, 2.0) for slot in range(2)] == [["4", "5"], ["6", "7"]]


@pytest.mark.parametrize("engine", ["processes", "ray"])
def test_the_next_search_removes_the_scratch_folder_of_a_killed_one(tmp_path, monkeypatch, engine):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for pid in (gone.pid, os.getpid()):
        (tmp_path / f"ticket_search_{engine}_{pid}_x").mkdir()
        (tmp_path / f"ticket_search_{engine}_{pid}_x" / "data_0").write_bytes(b"a whole data set")
    with scratch_folder(engine) as own:
        left = {path.name for path in tmp_path.iterdir()}
    assert left == {f"ticket_search_{engine}_{os.getpid()}_x", own.name}
