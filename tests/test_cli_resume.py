"""Tests for stopping a search, resuming it with changed settings and pruning its store from the command line."""

import os
import re
import shutil
import subprocess
import time
from collections import Counter

import pandas as pd
import pytest
from helpers import command, finished_levels, in_process

from ticket_search.results.events import read_events

SPACE = (
    *("digits", "--output", "run", "--set", "space.pruning_rate=[0.3, 0.6]", "--set", "space.rewind_iteration=[0, 20]"),
    *(
        "--set",
        "space.strategy=null",
        "--set",
        "search.sampler=grid",
        "--set",
        "search.trials=null",
        "--set",
        "seeds=[0, 1]",
    ),
    *("--set", "pruning.max_levels=2", "--set", "training.iterations=200", "--set", "search.max_concurrent=2"),
)
RESUME = "Resume with: ticket-search resume run --engine processes"


def levels_of(run_dir, event):
    return Counter(e["level_key"] for e in read_events(run_dir) if e["event"] == event)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The working directory of a search stopped at its first level, and the outputs of `stop` and of the search."""
    cwd = tmp_path_factory.mktemp("stopped")
    run = command("run", *SPACE, "--engine", "processes")
    with subprocess.Popen(run, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as driver:
        try:
            deadline = time.monotonic() + 120
            while not any(event["event"] == "level_started" for event in read_events(cwd / "run")):
                assert driver.poll() is None, driver.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            said = in_process("stop", "run", cwd=cwd)
            out, err = driver.communicate(timeout=90)
        finally:
            driver.kill()
    shutil.copytree(cwd / "run", cwd / "as_stopped")
    return cwd, said, subprocess.CompletedProcess(driver.pid, driver.returncode, out, err)


def test_a_search_stopped_before_its_first_level_trains_none(tmp_path, monkeypatch):
    from ticket_search.runs.directory import request_stop
    from ticket_search.search.driver import SearchDriver
    from ticket_search.storage.folder import open_folder

    started = SearchDriver.started

    def stop_as_it_starts(driver, number):
        started(driver, number)
        request_stop(open_folder(tmp_path / "run"))

    monkeypatch.setattr(SearchDriver, "started", stop_as_it_starts)
    said = in_process("run", *SPACE, "--engine", "inline", cwd=tmp_path)
    assert said.returncode == 130
    assert RESUME.replace("processes", "inline") in said.stderr
    assert levels_of(tmp_path / "run", "level_started") == {}
    assert [e["event"] for e in read_events(tmp_path / "run")].count("trajectory_started") == 1


@pytest.fixture(scope="module")
def resumed(stopped):
    """The same search, resumed with a changed setting."""
    cwd, _, _ = stopped
    said = in_process("resume", "run", "--set", "search.early_stopping.patience=3", "--engine", "inline", cwd=cwd)
    return cwd, said


def test_stop_names_the_process_and_the_command_that_resumes(stopped):
    _, said, search = stopped
    assert (said.returncode, said.stderr) == (0, "")
    first, second = said.stdout.splitlines()
    assert re.fullmatch(
        rf"process {search.args} on \S+ \(since .*\) will stop when the levels now in training are done", first
    )
    assert second == "resume with: ticket-search resume run --engine processes"


def test_a_stopped_search_ends_with_130_and_the_command_that_resumes(stopped):
    _, _, search = stopped
    assert search.returncode == 130
    assert search.stderr.splitlines()[3:] == [f"stopped on request; finished work is kept. {RESUME}"]
    assert "Sparsest" not in search.stdout


def test_a_new_search_estimates_the_disk_once(stopped, resumed):
    assert stopped[2].stderr.splitlines()[2].startswith("disk: about ")
    assert stopped[2].stderr.count("disk:") == 1
    assert "disk:" not in stopped[2].stdout + resumed[1].stdout + resumed[1].stderr


def test_a_stop_lets_running_levels_finish_but_no_trajectory(stopped):
    run_dir = stopped[0] / "as_stopped"
    started = levels_of(run_dir, "level_started")
    assert started == finished_levels(run_dir)
    assert 0 < len(started) < 18  # 2 seeds, each with a dense network and 4 trajectories of 2 pruned levels
    assert set(pd.read_parquet(run_dir / "levels")["level_key"]) == set(started)
    assert "running" in set(pd.read_parquet(run_dir / "trajectories")["status"])
    assert list((run_dir / "lock").iterdir()) == []


def test_a_stopped_search_is_finished_by_resume_and_nothing_is_trained_twice(resumed):
    cwd, said = resumed
    assert said.returncode == 0, said.stderr
    trajectories = pd.read_parquet(cwd / "run/trajectories")
    assert len(trajectories) == 8
    assert set(trajectories["status"]) <= {"completed", "stopped"}
    assert set(finished_levels(cwd / "run").values()) == {1}
    assert set(finished_levels(cwd / "as_stopped")) < set(finished_levels(cwd / "run"))


def test_a_changed_setting_is_reported_in_a_line(resumed):
    cwd, said = resumed
    changed, plan = said.stderr.splitlines()
    assert changed == "search.early_stopping.patience was 2 and is now 3"
    assert plan.startswith("plan: ")
    assert "patience: 3" in (cwd / "run/search.yaml").read_text()


def test_a_changed_space_is_refused_with_advice(stopped):
    cwd, _, _ = stopped
    before = (cwd / "as_stopped/search.yaml").read_text()
    said = in_process("resume", "as_stopped", "--set", "space.pruning_rate=[0.3, 0.5]", cwd=cwd)
    assert (said.returncode, said.stdout) == (2, "")
    assert (
        "--set space.pruning_rate=[0.3, 0.5]: that would be another search; only search.trials, search." in said.stderr
    )
    said = in_process("run", *SPACE, "--output", "as_stopped", "--set", "space.pruning_rate=[0.3, 0.5]", cwd=cwd)
    assert (said.returncode, said.stdout) == (2, "")
    assert "contains another search ('digits', which differs in space.pruning_rate)" in said.stderr
    assert f"--store '{cwd}/as_stopped/store'" in said.stderr
    assert (cwd / "as_stopped/search.yaml").read_text() == before


def test_stop_refuses_when_nothing_runs(finished_search, tmp_path):
    said = in_process("stop", finished_search)
    assert (said.returncode, said.stdout) == (2, "")
    assert "finished_search', so there is nothing to stop" in said.stderr
    assert not (finished_search / "stop.json").exists()
    for name in ("stop", "store"):
        said = in_process(name, tmp_path)
        assert (said.returncode, said.stdout) == (2, "")
        assert "is n" in said.stderr
        assert "Traceback" not in said.stderr


def test_store_removes_nothing_unless_asked(finished_search):
    there = sorted((finished_search / "store").glob("??/*"))
    trained = len(finished_levels(finished_search))
    for arguments in ((), ("--prune",), ("--keep-best", "1", "--dry-run")):
        said = in_process("store", finished_search, *arguments)
        assert (said.returncode, said.stderr) == (0, "")
        lines = said.stdout.splitlines()
        assert lines[0] == f"store: {finished_search}/store"
        assert re.match(rf"levels +{trained} files +\d", lines[1])
        assert re.match(r"rewind weights +4 files +\d", lines[2])
        assert lines[-2] == f"used by {finished_search}"
        assert sorted((finished_search / "store").glob("??/*")) == there
        if "--dry-run" in arguments:
            assert re.match(r"needed by no search: \d+ files, ", lines[-1])
        else:
            assert lines[-1] == "all files are needed"


def test_keep_best_defaults_to_ten(finished_search):
    store = finished_search / "store"

    def files():
        return len(list(store.glob("??/*")))

    assert "needed by no search" in in_process("store", finished_search, "--dry-run", "--keep-best").stdout
    before = files()
    said = in_process("store", finished_search, "--keep-best").stdout.splitlines()[-1]
    ten = files()
    assert re.match(rf"removed: {before - ten} files, \d+ kB$", said)
    said = in_process("store", finished_search, "--keep-best", "1").stdout.splitlines()[-1]
    assert files() == 3 < ten  # the ticket, its dense network and the ticket's initial weights
    assert said.startswith(f"removed: {ten - 3} files, ")
    said = in_process("store", finished_search, "--keep-best=1").stdout
    assert said.endswith("all files are needed\n")


def test_store_refuses_while_the_search_runs(finished_search):
    """A search whose lock is held counts as running."""
    from ticket_search.runs.directory import hold, read_spec
    from ticket_search.storage.folder import open_folder

    folder = open_folder(finished_search)
    before = sorted((finished_search / "store").rglob("*"))
    with hold(folder, read_spec(folder)):
        said = in_process("store", finished_search, "--keep-best", "0")
    assert (said.returncode, said.stdout) == (2, "")
    assert f"finished_search' is being run by process {os.getpid()} on " in said.stderr
    assert sorted((finished_search / "store").rglob("*")) == before
