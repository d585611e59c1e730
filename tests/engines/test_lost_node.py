"""If a cluster loses a node, only the node's unfinished levels are lost, and its trajectories move to another node."""

import subprocess
import time
from collections import Counter

import pytest
from helpers import command, finished_levels

from ticket_search.results.events import read_events
from ticket_search.results.reading import load_results

ARGUMENTS = ["--set", "search.sampler=grid", "--set", "search.trials=null", "--set", "space.pruning_rate=[0.3, 0.5]"]
ARGUMENTS += ["--set", "space.rewind_iteration=[0]", "--set", "space.strategy=[global]", "--set", "seeds=[0, 1]"]
ARGUMENTS += ["--set", "pruning.max_levels=4", "--set", "search.early_stopping=null"]
# Train long enough that the second node starts a trajectory before the first node has run all four.
ARGUMENTS += ["--set", "training.iterations=1200"]


def run(address, run_dir):
    run = command("run", "digits", *ARGUMENTS, "--output", run_dir, "--address", address)
    return subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def running(run_dir):
    """Return the trajectories that have finished a level but have not ended. If there are two, each node runs one."""
    events = read_events(run_dir)
    ended = {event["trajectory_id"] for event in events if event["event"] == "trajectory_ended"}
    return {event["trajectory_id"] for event in events if event["event"] == "level_finished"} - ended


@pytest.fixture
def cluster():
    """A cluster on this machine: a head without CPUs, and two nodes with one CPU each."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    made.nodes = [made.add_node(num_cpus=1), made.add_node(num_cpus=1)]
    yield made
    made.shutdown()


def test_the_trajectories_of_a_lost_node_move_to_another(cluster, tmp_path):
    run_dir = tmp_path / "run"
    driver = run(cluster.address, run_dir)
    deadline = time.monotonic() + 120
    while len(running(run_dir)) < 2:
        assert driver.poll() is None, driver.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    cluster.remove_node(cluster.nodes[0], allow_graceful=False)
    _, err = driver.communicate(timeout=240)
    assert driver.returncode == 0, err
    results = load_results(run_dir)
    assert list(results.trajectories["status"]) == ["completed"] * 4
    assert not results.levels.duplicated(["trajectory_id", "level"]).any()
    assert len(results.levels) == 4 * 5
    events = Counter(event["event"] for event in read_events(run_dir))
    finished = finished_levels(run_dir)
    assert events["trajectory_restarted"] >= 1
    assert set(finished.values()) == {1}
