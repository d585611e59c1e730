"""Searches with a real Ray instance: results must not depend on which worker runs a trajectory, when, or how often."""

import os
import signal
import time

import pandas as pd
import pytest
from helpers import finished_levels

from ticket_search import load_results
from ticket_search.engines.ray import nodes
from ticket_search.engines.ray.trainable import TrajectoryTrainable
from ticket_search.engines.ray.tune_hooks import run_on_ray
from ticket_search.errors import StorageError, TicketSearchError
from ticket_search.launch.run import run_search
from ticket_search.results.events import read_events
from ticket_search.search.driver import SearchDriver
from ticket_search.search.reports import EndReport, NotShared
from ticket_search.storage.folder import open_folder

KEYS = ["trajectory_id", "level"]
#: Columns that may differ between two runs of the same trajectory.
CLOCK = ["train_seconds", "reused"]
GRID = {"pruning_rate": [0.3, 0.6], "strategy": ["layerwise", "global"], "rewind_iteration": [0, 20]}


def levels_of(run_dir):
    return load_results(run_dir).levels.drop(columns=CLOCK)


def assert_same(one, other):
    pd.testing.assert_frame_equal(one, other, check_exact=True)


@pytest.fixture(scope="module")
def grid_search(search):
    return search(GRID, seeds=(0, 1), sampler="grid", trials=None, early_stopping=None)


@pytest.fixture(scope="module")
def two_workers(ray_address, grid_search, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("two") / "run"
    progress = run_search(grid_search, run_dir)
    assert progress.counts == {"running": 0, "completed": 16, "stopped": 0, "diverged": 0, "failed": 0}
    return run_dir


def test_every_point_and_seed_of_the_grid_is_run_once(two_workers):
    results = load_results(two_workers)
    assert len(results.trajectories) == 16
    assert not results.trajectories.duplicated(["pruning_rate", "strategy", "rewind_iteration", "seed"]).any()
    assert not results.levels.duplicated(KEYS).any()
    assert (results.levels.groupby("trajectory_id").size() == 3).all()
    assert set(results.curves["iteration"]) == {20, 40}


def test_level_0_is_trained_once_for_each_seed(two_workers):
    dense = load_results(two_workers).levels.query("level == 0")
    assert dense["level_key"].nunique() == 2
    assert (~dense["reused"]).sum() == 2
    finished = finished_levels(two_workers)
    assert set(finished.values()) == {1}


def test_one_worker_gives_the_same_rows_as_two(two_workers, grid_search, tmp_path):
    one_worker = grid_search.model_copy(update={"search": grid_search.search.model_copy(update={"max_concurrent": 1})})
    run_search(one_worker, tmp_path / "run")
    assert_same(levels_of(tmp_path / "run"), levels_of(two_workers))


def test_a_reused_actor_keeps_no_state(two_workers, grid_search, search, tmp_path):
    """A trajectory has the same results in an actor that has already trained another network."""
    values, seed = {"pruning_rate": 0.6, "strategy": "global", "rewind_iteration": 20}, 1
    mixed = {n: [v] for n, v in values.items()} | {"model.name": ["lenet_32", "lenet_16"]}
    spec = search(mixed, seeds=(seed,), sampler="grid", trials=None, early_stopping=None, max_concurrent=1)
    run_search(spec, tmp_path / "run")
    columns = list(levels_of(two_workers).columns)
    mine = load_results(tmp_path / "run").levels.query("`model.name` == 'lenet_16'")
    expected = load_results(two_workers).levels.merge(mine[["trajectory_id"]].drop_duplicates())
    assert len(expected) == len(mine) == 3
    assert_same(mine[columns].reset_index(drop=True), expected[columns].reset_index(drop=True))


def test_running_again_trains_nothing(two_workers, grid_search):
    before, events = levels_of(two_workers), len(read_events(two_workers))
    assert run_search(grid_search, two_workers).done == 16
    assert_same(levels_of(two_workers), before)
    assert len(read_events(two_workers)) == events


def test_a_search_that_shares_the_store_trains_only_what_is_missing(two_workers, grid_search, tmp_path):
    wider = grid_search.model_copy(
        update={"store": str(two_workers / "store"), "space": {**grid_search.space, "pruning_rate": (0.3, 0.5)}}
    )
    run_search(wider, tmp_path / "run", engine="inline")
    levels = load_results(tmp_path / "run").levels
    assert levels.query("pruning_rate == 0.3 or level == 0")["reused"].all()
    assert not levels.query("pruning_rate == 0.5 and level > 0")["reused"].any()


def test_a_bug_in_a_hook_is_one_line_with_its_location():
    from ray.tune.error import TuneError

    from ticket_search.engines.ray.tune_hooks import _one_message
    from ticket_search.errors import Fault

    trace = 'File "a.py", line 3, in f\n  File "driver.py", line 12, in g\nZeroDivisionError: division by zero'
    with pytest.raises(Fault, match=r"^ZeroDivisionError: division by zero \(driver\.py:12\)$"), _one_message():
        raise TuneError(f"Traceback:\n  {trace}")


def test_no_trajectory_is_lost_if_a_worker_is_killed_while_it_starts_one(ray_address, search, tmp_path):
    marker = tmp_path / "killed"

    class DiesOnce(TrajectoryTrainable):
        def reset_config(self, new_config):
            if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().reset_config(new_config)

    base = {"pruning.max_levels": 1}
    spec = search({"pruning_rate": [0.5, 0.6]}, base=base, seeds=(0,), sampler="grid", trials=None, max_concurrent=1)
    running = SearchDriver(spec, tmp_path / "run")
    run_on_ray(running, open_folder(tmp_path / "run"), trainable=DiesOnce)
    running.flush()
    assert marker.exists()
    results = load_results(tmp_path / "run")
    assert list(results.trajectories["status"]) == ["completed"] * 2
    assert len(results.levels) == 4


def test_ends_of_short_trajectories_do_not_cancel_starting_actors(ray_address, search, tmp_path, monkeypatch):
    """An actor that takes a second to start is still used, even if many trajectories end in the meantime."""

    class Short(TrajectoryTrainable):
        def setup(self, config):
            if not hasattr(self, "_reports"):
                try:
                    (tmp_path / "first").touch(exist_ok=False)
                except FileExistsError:
                    time.sleep(1.0)
            super().setup(config)

        def reports(self, job):
            (tmp_path / f"worked_{os.getpid()}").touch()
            time.sleep(0.02)
            yield EndReport(status="completed")

    def both_have_worked():
        return len(list(tmp_path.glob("worked_*"))) == 2

    monkeypatch.setattr("ticket_search.search.driver._FLUSH_SECONDS", 0.1)
    space = {"pruning_rate": {"low": 0.1, "high": 0.9}}
    spec = search(space, sampler="random", trials=150, early_stopping=None, max_concurrent=2)
    running = SearchDriver(spec, tmp_path / "run", is_asked_to_stop=both_have_worked)
    run_on_ray(running, open_folder(tmp_path / "run"), trainable=Short)
    assert both_have_worked()


def test_a_request_that_no_node_meets_ends_the_search(ray_address, search, tmp_path, monkeypatch):
    """When the node types are unknown, as on Kubernetes, the search ends unless a suitable node joins in time."""
    monkeypatch.setattr(nodes, "node_types", lambda: None)
    monkeypatch.setattr(nodes, "_LOOK_SECONDS", 0.0)
    monkeypatch.setenv("TICKET_SEARCH_NODE_WAIT_SECONDS", "0.5")
    spec = search({"pruning_rate": [0.5]}, sampler="grid", trials=None)
    spec = spec.model_copy(update={"resources": spec.resources.model_copy(update={"cpus": 1000.0})})
    running = SearchDriver(spec, tmp_path / "run")
    with pytest.raises(
        TicketSearchError, match=r"no node with 1000 CPUs and 0 GPUs for a trajectory joined within 0\.5 sec"
    ):
        run_on_ray(running, open_folder(tmp_path / "run"))


def test_the_search_ends_if_no_node_shares_the_storage(ray_address, search, tmp_path):
    class Elsewhere(TrajectoryTrainable):
        def reports(self, job):
            yield NotShared(reason="on node7, '/shared/run' is not the folder that the search uses")

    said = []
    spec = search({"pruning_rate": [0.5, 0.6]}, sampler="grid", trials=None)
    running = SearchDriver(spec, tmp_path / "run", say=said.append)
    with pytest.raises(StorageError, match=r"^on node7, '/shared/run' is not the folder that the search uses$"):
        run_on_ray(running, open_folder(tmp_path / "run"), trainable=Elsewhere)
    assert said == [
        "excluded a node; its trajectories will run on other nodes: "
        "on node7, '/shared/run' is not the folder that the search uses"
    ]
