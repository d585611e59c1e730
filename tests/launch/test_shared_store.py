"""Searches that share a level store: each level is trained once, by the search that claims it first."""

import json
import subprocess
import sys
from collections import Counter

import pandas as pd
import pytest
from helpers import command, finished_levels

from ticket_search import load_results
from ticket_search.lottery.trajectory import run_trajectory
from ticket_search.storage.folder import open_folder
from ticket_search.store.level_store import LevelStore

#: A script that runs trajectories (given as JSON) one after another and logs their events to its own run directory.
WALK = """
import json, sys, time
from pathlib import Path
import torch
from ticket_search.tasks.registry import load_task
from ticket_search.lottery.trajectory import run_trajectory
from ticket_search.results.events import EventLog
from ticket_search.config.base import validate
from ticket_search.config.trajectory import DatasetSpec, TrajectorySpec
from ticket_search.store.level_store import LevelStore

torch.set_num_threads(1)
run_dir, store, ready, others = map(Path, sys.argv[1:5])
ready.touch()
while not others.exists():
    time.sleep(0.005)
for trajectory in json.loads(sys.argv[5]):
    spec = validate(TrajectorySpec, trajectory)
    for level in run_trajectory(
        spec, load_task(spec, Path()), LevelStore(store), rewind_iterations=(0, 20),
        log=EventLog(run_dir).log,
    ):
        print(level.key, level.val_loss, flush=True)
"""


def walker(tmp_path, name, other, specs):
    """Start a process that runs the trajectories `specs` as soon as the process `other` is ready too."""
    plain = json.dumps([spec.model_dump(mode="json") for spec in specs])
    places = (tmp_path / name, tmp_path / "store", tmp_path / f"{name}.ready", tmp_path / f"{other}.ready")
    return subprocess.Popen(
        [sys.executable, "-c", WALK, *map(str, places), plain],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def spaces(trajectory):
    """Two lists of eight trajectories. Four trajectories are in both lists, and both lists use the same two seeds."""

    def over(rates):
        points = [(rate, k, seed) for rate in rates for k in (0, 20) for seed in (0, 1)]
        return [trajectory({"pruning_rate": rate, "rewind_iteration": k}, seed) for rate, k, seed in points]

    return over([0.2, 0.4]), over([0.4, 0.6])


def test_two_concurrent_processes_train_each_level_once(spaces, digits, tmp_path):
    walkers = [walker(tmp_path, *names, specs) for names, specs in zip(("ab", "ba"), spaces, strict=True)]
    said = [process.communicate(timeout=120) for process in walkers]
    assert [(process.returncode, err) for process, (_, err) in zip(walkers, said, strict=True)] == [(0, "")] * 2
    keys = [{line.split()[0] for line in out.splitlines()} for out, _ in said]
    assert keys[0] & keys[1]
    assert finished_levels(tmp_path / "a", tmp_path / "b") == dict.fromkeys(keys[0] | keys[1], 1)
    assert min(len(finished_levels(tmp_path / name)) for name in "ab") > 1
    # The losses are the same as if one process had trained all levels.
    assert {line for out, _ in said for line in out.splitlines()} == {
        f"{level.key} {level.val_loss}" for level in alone(spaces, digits, tmp_path)
    }
    assert list((tmp_path / "store" / "leases").iterdir()) == []


def alone(spaces, digits, tmp_path):
    """Yield the levels of both lists, trained by this process in another store."""
    for spec in {spec.model_dump_json(): spec for specs in spaces for spec in specs}.values():
        yield from run_trajectory(spec, digits, LevelStore(tmp_path / "alone"), rewind_iterations=(0, 20))


def test_the_second_of_two_searches_reuses_levels_of_the_first(spaces, digits, tmp_path):
    logs = []
    for specs in spaces:
        events = Counter()
        log = lambda event, events=events, **fields: events.update([(event, fields["level_key"])])  # noqa: E731
        keys = [
            level.key
            for spec in specs
            for level in run_trajectory(spec, digits, LevelStore(tmp_path), rewind_iterations=(0, 20), log=log)
        ]
        logs.append((events, set(keys)))
    (first, mine), (second, yours) = logs
    trained = [{key: n for (event, key), n in log.items() if event == "level_finished"} for log in (first, second)]
    assert trained == [dict.fromkeys(mine, 1), dict.fromkeys(yours - mine, 1)]
    assert {key for event, key in second if event == "level_reused"} >= mine & yours != set()


def test_two_concurrent_searches_train_each_level_once(s3, search, tmp_path):
    """Two complete searches that share a store in object storage never train the same level twice."""
    folder = open_folder(s3.location("shared"))
    settings = {"seeds": (0, 1), "sampler": "grid", "trials": None, "early_stopping": None, "max_concurrent": 1}
    rates = {"a": [0.3, 0.6], "b": [0.6, 0.8]}
    drivers = []
    for name, listed in rates.items():
        (tmp_path / f"{name}.yaml").write_text(search({"pruning_rate": listed}, **settings).to_yaml())
        run = ["run", tmp_path / f"{name}.yaml", "--output", tmp_path / name, "--store", folder]
        drivers.append(
            subprocess.Popen(
                command(*run, "--engine", "inline"),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    said = [driver.communicate(timeout=120)[1] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], said
    a, b = (load_results(tmp_path / name).levels for name in rates)
    assert (len(a), len(b)) == (12, 12)
    keys = {*a["level_key"], *b["level_key"]}
    assert len(keys) == 2 * (1 + 3 * 2)
    assert finished_levels(tmp_path / "a", tmp_path / "b") == dict.fromkeys(keys, 1)
    assert sum((~table["reused"]).sum() for table in (a, b)) == len(keys)
    assert {file.name.rpartition("/")[2].partition(".")[0] for file in folder.files(recursive=True)} >= keys
    figures = [
        table.query("pruning_rate == 0.6 or level == 0").drop(columns=["train_seconds", "reused"]) for table in (a, b)
    ]
    shared = [table.query("pruning_rate == 0.6").reset_index(drop=True) for table in figures]
    pd.testing.assert_frame_equal(*shared, check_exact=True)
