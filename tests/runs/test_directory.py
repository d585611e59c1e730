"""A run directory belongs to one search. At most one process runs the search, and that process can be asked to stop."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from types import SimpleNamespace

import pandas as pd
import pytest
from helpers import in_process

from ticket_search.errors import RunDirectoryError, StorageError, TicketSearchError
from ticket_search.launch import run
from ticket_search.launch.run import run_search
from ticket_search.runs import directory
from ticket_search.runs.directory import (
    check_same_search,
    held_by,
    hold,
    is_stop_requested,
    read_run,
    read_spec,
    request_stop,
)
from ticket_search.search.driver import SearchDriver
from ticket_search.search.reports import EndReport, LevelReport
from ticket_search.search.suggestions import SuggestionRecord
from ticket_search.storage import lease
from ticket_search.storage.folder import open_folder

HOLD = """
import sys, time
from pathlib import Path
from ticket_search.runs.directory import hold
from ticket_search.config.loading import load_search
from ticket_search.storage.folder import open_folder
with hold(open_folder(sys.argv[1]), load_search(Path(sys.argv[2]))):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def spec(search):
    return search({"pruning_rate": [0.5, 0.3]}, seeds=(0, 1), sampler="grid")


@pytest.fixture
def run_dir(tmp_path):
    return open_folder(tmp_path / "run")


@pytest.fixture
def held_elsewhere(spec, run_dir, tmp_path):
    """Another process that holds the run directory's lock."""
    (tmp_path / "space.yaml").write_text(spec.to_yaml())
    command = [sys.executable, "-c", HOLD, str(run_dir), str(tmp_path / "space.yaml")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture
def far(run_dir, monkeypatch):
    """The lock folder of the run directory. A process on another machine holds the lock, which expires soon."""
    for module in (lease, directory):
        monkeypatch.setattr(module, "EXPIRY_SECONDS", 0.8)
    hurried = SimpleNamespace(time=time.time, monotonic=time.monotonic, sleep=lambda _: time.sleep(0.05))
    monkeypatch.setattr(directory, "time", hurried)
    owner = replace(lease._this_process(), machine="elsewhere", host="far", pid=1)
    run_dir.write("lock/run.aaaaaaaaaaaa.json", json.dumps(asdict(owner)).encode())
    return run_dir / "lock"


class TestLock:
    def test_a_second_process_is_refused_and_told_who_runs_it(self, run_dir, spec, held_elsewhere):
        who = rf"run' is being run by process {held_elsewhere.pid} on \S+ \(since 2.*\)$"
        assert held_by(run_dir).pid == held_elsewhere.pid
        with pytest.raises(RunDirectoryError, match=who), hold(run_dir, spec):
            pass
        with pytest.raises(RunDirectoryError, match=who):
            check_same_search(run_dir, spec)
        assert held_elsewhere.poll() is None
        assert held_by(run_dir).pid == held_elsewhere.pid

    def test_the_lock_of_a_killed_process_is_broken_with_a_notice(self, run_dir, spec, held_elsewhere):
        owner = held_by(run_dir)
        held_elsewhere.send_signal(signal.SIGKILL)
        held_elsewhere.wait()
        assert held_by(run_dir) is None
        check_same_search(run_dir, spec)
        said = []
        started = time.monotonic()
        with hold(run_dir, spec, said.append) as held:
            assert said == [f"broke the lock of {owner}, which is no longer running"]
            assert not held.is_new
            assert held_by(run_dir).pid == os.getpid()
        assert time.monotonic() - started < 1

    def test_the_lock_is_released_silently_at_the_end(self, run_dir, spec):
        said = []
        for _ in range(2):
            with hold(run_dir, spec, said.append):
                assert held_by(run_dir).pid == os.getpid()
            assert held_by(run_dir) is None
        with pytest.raises(ZeroDivisionError), hold(run_dir, spec):
            1 / 0  # noqa: B018
        assert held_by(run_dir) is None
        assert ((run_dir / "lock").files(), said) == ([], [])

    def test_the_lock_of_a_silent_process_elsewhere_is_broken_after_a_wait(self, run_dir, spec, far):
        said = []
        started = time.monotonic()
        with hold(run_dir, spec, said.append):
            assert time.monotonic() - started > 0.8
        assert len(said) == 2
        assert "run' was being run by process 1 on far (since 2" in said[0]
        assert said[0].endswith("; waiting 1 s to see whether it still is")
        assert said[1].startswith("broke the lock of process 1 on far (since 2")
        assert far.files() == []

    def test_a_process_elsewhere_with_a_heartbeat_keeps_the_lock(self, run_dir, spec, far):
        over = threading.Event()

        def beat():
            while not over.wait(0.1):
                far.write("run.aaaaaaaaaaaa.beat", b"")

        heart = threading.Thread(target=beat)
        heart.start()
        started = time.monotonic()
        try:
            with pytest.raises(RunDirectoryError, match="is being run by process 1 on far"), hold(run_dir, spec):
                pass
        finally:
            over.set()
            heart.join()
        assert time.monotonic() - started < 6
        assert "run.aaaaaaaaaaaa.json" in [file.name for file in far.files()]
        assert run_dir.read("search.yaml") is None

    def test_a_process_that_lost_its_lock_notices(self, run_dir, spec, monkeypatch):
        monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.02)
        with hold(run_dir, spec) as held:
            run._check_held(run_dir, held)
            (run_dir / "lock").remove_all()
            deadline = time.monotonic() + 10
            while not held.lease.is_lost:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            with pytest.raises(TicketSearchError, match=r"another process has taken over '.*run', because"):
                run._check_held(run_dir, held)

    def test_a_suspended_process_that_lost_its_lock_writes_nothing_more(self, run_dir, spec, monkeypatch):
        """Every write fails if another process broke the lock and resumed the search during the suspension."""
        now = [0.0]
        monkeypatch.setattr(lease, "_clock", lambda: now[0])
        with hold(run_dir, spec) as held:
            asleep = SearchDriver(spec, run_dir, guard=lambda: run._check_held(run_dir, held))
            assert asleep.next().number == 0
            asleep.flush()
            (run_dir / "lock").remove_all()
            with hold(run_dir, spec):
                other = SearchDriver(spec, run_dir)
                assert [other.next().number for _ in range(3)] == [0, 1, 2]
                other.flush()
                now[0] = 100.0
                for write in (asleep.next, asleep.flush):
                    with pytest.raises(TicketSearchError, match="another process has taken"):
                        write()
                assert len(pd.read_parquet(run_dir.path / "trajectories")) == 3
        assert [suggestion.number for suggestion in SuggestionRecord(run_dir).read()] == [0, 1, 2]


class TestDirectory:
    def test_keeps_its_run_id_when_moved(self, run_dir, spec, tmp_path):
        with hold(run_dir, spec) as held:
            assert (held.is_new, held.before) == (True, None)
            first = held.run
        run_dir.path.rename(tmp_path / "there")
        with hold(open_folder(tmp_path / "there"), spec) as held:
            assert (held.is_new, held.before, held.run) == (False, spec, first)
        assert read_run(open_folder(tmp_path / "there")) == first
        with hold(run_dir, spec) as held:
            assert held.run.run_id != first.run_id

    @pytest.mark.parametrize(
        ("changes", "lines"),
        [
            ({}, []),
            ({"early_stopping": {"patience": 3}}, ["search.early_stopping.patience was 2 and is now 3"]),
            (
                {"trials": 30, "max_concurrent": 2, "checkpoint_seconds": None},
                [
                    "search.checkpoint_seconds was 60.0 and is now null",
                    "search.max_concurrent was null and is now 2",
                    "search.trials was 24 and is now 30",
                ],
            ),
        ],
    )
    def test_allows_changed_settings_and_reports_them(self, run_dir, spec, search, changes, lines):
        changed = search({"pruning_rate": [0.5, 0.3]}, seeds=(0, 1), sampler="grid", **changes)
        with hold(run_dir, spec):
            pass
        check_same_search(run_dir, changed)
        with hold(run_dir, changed) as held:
            assert held.before == spec
            assert run._changes(held, changed) == lines
        assert read_spec(run_dir) == changed
        with hold(run_dir, changed) as held:
            assert run._changes(held, changed) == []

    def test_allows_turning_early_stopping_off_and_on(self, run_dir, spec, search):
        changed = search({"pruning_rate": [0.5, 0.3]}, seeds=(0, 1), sampler="grid", early_stopping=None)
        for before, after in ((spec, changed), (changed, spec)):
            with hold(run_dir, before):
                pass
            with hold(run_dir, after) as held:
                lines = run._changes(held, after)
                assert lines
                assert all(line.startswith("search.early_stopping") for line in lines)

    def test_refuses_a_changed_space(self, run_dir, spec, search):
        other = search({"pruning_rate": [0.5, 0.2]}, seeds=(0, 1), sampler="grid", early_stopping=None)
        with hold(run_dir, spec):
            pass
        refusal = (
            rf"run' contains another search \('x', which differs in space.pruning_rate\); give another --output, "
            rf"and --store '{run_dir}/store' to reuse the levels that both searches have in common$"
        )
        with pytest.raises(RunDirectoryError, match=refusal):
            check_same_search(run_dir, other)
        with pytest.raises(RunDirectoryError, match=refusal), hold(run_dir, other):
            pass
        assert read_spec(run_dir) == spec
        assert (run_dir / "lock").files() == []

    def test_refuses_a_folder_with_other_files(self, run_dir, spec):
        run_dir.write("thesis/chapter.tex", b"")
        with pytest.raises(RunDirectoryError, match="is not empty and contains no search"):
            check_same_search(run_dir, spec)

    def test_accepts_a_folder_where_a_process_died_before_its_search_began(self, run_dir, spec):
        mine = lease._this_process()
        dead = replace(mine, started=mine.started - 1)
        run_dir.write("lock/run.aaaaaaaaaaaa.json", json.dumps(asdict(dead)).encode())
        check_same_search(run_dir, spec)
        with hold(run_dir, spec) as held:
            assert held.is_new
        assert read_spec(run_dir) == spec

    def test_reports_a_damaged_run_file(self, run_dir, spec):
        with hold(run_dir, spec):
            pass
        for damage in (b"", b"{", b"[]", b'{"run_id": "x"}'):
            run_dir.write("run.json", damage)
            with pytest.raises(RunDirectoryError, match=r"run/run\.json' is damaged: "), hold(run_dir, spec):
                pass

    def test_removes_partial_files_of_a_killed_process(self, run_dir, spec):
        run_dir.write(".search.yaml.0.partial", b"name")
        with hold(run_dir, spec):
            assert not (run_dir.path / ".search.yaml.0.partial").exists()


class TestStopping:
    def test_the_request_returns_the_owner_and_is_visible(self, run_dir, held_elsewhere):
        assert not is_stop_requested(run_dir)
        assert request_stop(run_dir).pid == held_elsewhere.pid
        assert is_stop_requested(run_dir)

    def test_a_new_run_clears_the_request(self, run_dir, spec):
        with hold(run_dir, spec):
            request_stop(run_dir)
            assert is_stop_requested(run_dir)
        assert is_stop_requested(run_dir)
        with hold(run_dir, spec):
            assert not is_stop_requested(run_dir)

    def test_a_request_needs_a_running_process(self, run_dir, spec):
        with pytest.raises(RunDirectoryError, match="is not a run directory"):
            request_stop(run_dir)
        with hold(run_dir, spec):
            pass
        with pytest.raises(RunDirectoryError, match=r"no search is running in .*, so there is nothing to stop"):
            request_stop(run_dir)
        assert not is_stop_requested(run_dir)


def level_0(suggestion, **more):
    row = dict.fromkeys(("train_seconds", "density", "compression", "val_metric", "dense_val_metric"), 1.0)
    row |= {"metric": "accuracy", "higher_is_better": True}
    row |= {"trajectory_id": suggestion.trajectory_id, "level": 0, "level_key": "k", "iterations": 40, "matching": True}
    key = {"trajectory_id": suggestion.trajectory_id, "level": 0}
    return LevelReport(level=row, curve=[key | {"iteration": 40}], layers=[key | {"name": "fc1.weight"}], **more)


class TestDriverThatStops:
    def test_suggests_nothing_more_but_records_running_levels(self, spec, tmp_path):
        asked = False
        driven = SearchDriver(spec, tmp_path, is_asked_to_stop=lambda: asked)
        first, second = driven.next(), driven.next()
        driven.flush_if_due()
        assert not driven.progress.stopped
        asked, driven._flush_after = True, 0.0
        driven.level_finished(first.number, level_0(first))
        assert driven.progress.stopped
        assert driven.next() is None
        assert not driven.progress.exhausted
        driven.level_finished(second.number, level_0(second))
        driven.ended(second.number, EndReport(status="completed"))
        driven.flush()
        again = SearchDriver(spec, tmp_path)
        assert (again.next(), again.progress.stopped, again.progress.counts["completed"]) == (first, False, 1)

    def test_looks_for_a_request_every_few_seconds_not_at_every_level(self, spec, tmp_path):
        asked = []
        driven = SearchDriver(spec, tmp_path, is_asked_to_stop=lambda: asked.append(0))
        for _ in range(100):
            driven.flush_if_due()
        assert len(asked) == 1

    def test_stays_stopped(self, spec, tmp_path):
        answers = iter([True, False, False])
        driven = SearchDriver(spec, tmp_path, is_asked_to_stop=lambda: next(answers))
        for _ in range(3):
            driven._flush_after = 0.0
            driven.flush_if_due()
        assert driven.progress.stopped

    def test_suggests_nothing_when_halted_and_keeps_the_first_reason(self, spec, tmp_path):
        driven = SearchDriver(spec, tmp_path)
        first, second = driven.next(), StorageError("full")
        driven.halt(second)
        driven.halt(StorageError("still full"))
        assert driven.halted is second
        assert driven.next() is None
        assert not driven.progress.stopped
        assert SearchDriver(spec, tmp_path).next() == first


def test_notices_of_a_level_are_passed_on_in_order(spec, tmp_path):
    said = []
    driven = SearchDriver(spec, tmp_path, say=said.append)
    suggestion = driven.next()
    driven.level_finished(suggestion.number, level_0(suggestion))
    assert said == []
    driven.level_finished(suggestion.number, level_0(suggestion, notices=("one", "two")))
    assert said == ["one", "two"]


def test_a_search_whose_fields_have_new_names_is_resumed_in_its_tables(search, tmp_path):
    """``trajectory.retrain`` is an older name of ``pruning.retrain``, and an existing column keeps that older name."""
    settings = {"seeds": (0,), "sampler": "grid", "trials": None}
    old = search({"trajectory.retrain": ["weights"]}, **settings)
    run_search(old, tmp_path / "run", engine="inline")
    new = search({"pruning.retrain": ["weights"]}, **settings)
    assert new.identity() == old.identity()
    assert run_search(new, tmp_path / "run", engine="inline").done == 1
    assert list(read_spec(open_folder(tmp_path / "run")).space) == ["trajectory.retrain"]
    assert "trajectory.retrain" in pd.read_parquet(tmp_path / "run" / "levels")


def test_deleting_the_store_ends_a_running_search_at_the_next_level(search, tmp_path):
    """If the search recreated the store, it would exit with code 0, but `export` would refuse its tickets."""
    spec = search({"pruning_rate": [0.5]}, seeds=(0, 1), sampler="grid", trials=None, early_stopping=None)
    store = tmp_path / "run" / "store"

    def delete(progress, row):
        shutil.rmtree(store)

    with pytest.raises(StorageError, match=r"^the level store '.*run/store' was deleted or replaced while the search"):
        run_search(spec, tmp_path / "run", engine="inline", listener=delete)
    assert not store.exists()
    assert run_search(spec, tmp_path / "run", engine="inline").done == 2
    assert list(store.glob("??/*.safetensors"))


@pytest.mark.parametrize("option", ["--output", "--store"])
@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("x" * 300, "cannot be a folder: File name too long; give another path"),
        ("absent/" + "x" * 300, "cannot be a folder: File name too long; give another path"),
        ("loop", "cannot be a folder: Too many levels of symbolic links; give another path"),
        ("loop/run", "cannot be a folder: Too many levels of symbolic links; give another path"),
        ("pipe", "is not a directory"),
        ("pipe/run", "is not a directory"),
        ("/dev/full", "is not a directory"),
        ("/dev/full/run", "is not a directory"),
        ("broken/run", "broken' is broken"),
    ],
)
def test_a_path_that_cannot_be_a_folder_is_one_message(tmp_path, option, place, message):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "broken").symlink_to("nowhere")
    before = sorted(tmp_path.iterdir())
    places = {"--output": "run"} | {option: place}
    said = in_process(
        "run", "digits", "--engine", "inline", *(w for pair in places.items() for w in pair), cwd=tmp_path
    )
    assert (said.returncode, said.stdout) == (2, "")
    assert message in said.stderr
    assert len(said.stderr.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before
