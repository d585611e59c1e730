"""Searches in object storage give the same results as searches on a disk, even if the server fails temporarily."""

import json
import os
import subprocess
import sys
import threading

import pandas as pd
import pytest
from click.testing import CliRunner
from helpers import command, finished_levels

from ticket_search import load_results
from ticket_search.cli.commands import main
from ticket_search.errors import StorageError
from ticket_search.launch.run import run_search
from ticket_search.results.events import read_events
from ticket_search.storage import remote as storage
from ticket_search.storage.folder import open_folder

#: Columns that may differ between two runs of the same trajectory.
CLOCK = ["train_seconds", "reused"]
TABLES = ("levels", "trajectories", "curves", "layers")
IMPATIENT = """
from torch import nn
from ticket_search.storage import remote

remote.PATIENCE_SECONDS = 2.0

def network(image_shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, classes))
"""


def tables_of(run_dir):
    tables = vars(load_results(run_dir))
    return {name: tables[name].drop(columns=CLOCK, errors="ignore") for name in TABLES}


def assert_same(one, other):
    for name, table in tables_of(one).items():
        pd.testing.assert_frame_equal(table, tables_of(other)[name], check_exact=True, obj=name)


def assert_each_level_finished_once(run_dir):
    finished = finished_levels(run_dir)
    levels = load_results(run_dir).levels
    assert not levels.duplicated(["trajectory_id", "level"]).any()
    assert finished == dict.fromkeys(levels["level_key"], 1)


def say(*arguments):
    """Run a command in this process and return its output."""
    said = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert said.exit_code == 0, said.output
    return said.stdout


@pytest.fixture(scope="module")
def grid(search):
    """A search of four trajectories: two pruning rates, each with two seeds."""
    base = {"rewind_iteration": 20}
    return search(
        {"pruning_rate": [0.3, 0.6]}, seeds=(0, 1), base=base, sampler="grid", trials=None, early_stopping=None
    )


@pytest.fixture(scope="module")
def on_a_disk(grid, tmp_path_factory):
    """The run directory of the grid search, which this process has run on a disk."""
    folder = open_folder(tmp_path_factory.mktemp("disk"))
    assert run_search(grid, folder, engine="inline").counts["completed"] == 4
    return folder


@pytest.fixture(scope="module")
def by_command(grid, s3, tmp_path_factory):
    """The location, working directory and output of a command that has run the grid search in object storage.

    The command uses worker processes and reads the address of the server from the environment.
    """
    cwd, space = tmp_path_factory.mktemp("cwd"), tmp_path_factory.mktemp("space") / "space.yaml"
    space.write_text(grid.to_yaml())
    said = subprocess.run(
        command("run", space, "--output", "s3://tests/command", "--engine", "processes"),
        cwd=cwd,
        env=os.environ | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3.port}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert said.returncode == 0, said.stderr
    return s3.location("command"), cwd, said.stdout


def test_the_tables_equal_those_on_a_disk(on_a_disk, by_command):
    location, _, _ = by_command
    assert len(load_results(location).levels) == 12
    assert_same(location, on_a_disk)
    assert_each_level_finished_once(location)


def test_a_search_in_object_storage_leaves_nothing_on_the_disk(by_command):
    _, cwd, _ = by_command
    assert list(cwd.iterdir()) == []


def test_pandas_reads_the_tables(by_command, s3, monkeypatch):
    location, _, said = by_command
    place, _, query = location.partition("?")
    assert said.splitlines()[-1] == f"results: {location} (pd.read_parquet('{place}/levels?{query}'))"
    for table in TABLES:
        named = pd.read_parquet(f"{place}/{table}?{query}")
        with monkeypatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{s3.port}")
            pd.testing.assert_frame_equal(pd.read_parquet(f"{place}/{table}"), named)
        assert len(named) == len(getattr(load_results(location), table)) > 0


def test_the_reading_commands_work_in_object_storage(by_command):
    location, _, _ = by_command
    status = json.loads(say("status", location, "--json"))
    assert (status["running"], status["trajectories"], status["levels"]) == (False, {"completed": 4}, 12)
    levels = load_results(location).levels
    matching = levels.query("matching and level > 0")
    tickets = json.loads(say("tickets", location, "--json"))
    assert {ticket["trajectory_id"] for ticket in tickets} == set(matching["trajectory_id"]) != set()
    store = say("store", location).splitlines()
    assert store[0] == f"store: {location.replace('command', 'command/store')}"
    # 10 levels: for each of 2 seeds, a dense network and 2 levels at each of 2 pruning rates
    assert store[1].split()[:2] == ["levels", "10"]
    assert f"used by {location}" in store
    assert store[-1] == "all files are needed"


def test_resume_trains_nothing(by_command, on_a_disk):
    location, cwd, _ = by_command
    events = len(read_events(location))
    say("resume", location, "--engine", "inline")
    assert len(read_events(location)) == events
    assert_same(location, on_a_disk)
    assert list(cwd.iterdir()) == []


def test_the_search_waits_for_a_server_that_restarts(on_a_disk, grid, s3):
    location, restarts = s3.location("restarted"), []

    def kill_at_the_first_end(progress, row):
        if progress.done == 1:
            s3.kill()
            restarts.append(threading.Timer(2.0, s3.start))
            restarts[0].start()

    try:
        progress = run_search(grid, location, engine="processes", listener=kill_at_the_first_end)
    finally:
        restarts[0].join()
    assert progress.counts == {"running": 0, "completed": 4, "stopped": 0, "diverged": 0, "failed": 0}
    assert_same(location, on_a_disk)
    assert_each_level_finished_once(location)


@pytest.fixture
def impatient_network(tmp_path, monkeypatch):
    """A user's network. A process that imports its module gives up after 2 s if the storage does not answer."""
    (tmp_path / "impatient.py").write_text(IMPATIENT)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(storage, "PATIENCE_SECONDS", 2.0)
    yield {"model.name": "impatient:network"}
    sys.modules.pop("impatient", None)


def test_a_lost_server_gives_one_message_and_the_search_can_be_resumed(search, s3, impatient_network):
    settings = {"sampler": "grid", "trials": None, "early_stopping": None, "max_concurrent": 1}
    spec = search({"pruning_rate": [0.3, 0.6]}, seeds=(0,), base=impatient_network, **settings)
    location = s3.location("away")
    try:
        with pytest.raises(StorageError, match=r"^cannot \w+ 's3://tests/away[^']*': ") as error:
            run_search(spec, location, engine="inline", listener=lambda progress, row: s3.kill())
    finally:
        s3.start()
    assert "\n" not in str(error.value)
    assert json.loads(say("status", location, "--json"))["running"] is False
    # This process still holds the lock of the interrupted run. The lock must not block the next run.
    assert run_search(spec, location, engine="inline").counts["completed"] == 2
    assert len(load_results(location).levels) == 6
    assert_each_level_finished_once(location)
