"""A search goes on while hosts of its cluster are cut off, killed and added; nothing that was finished is lost."""

import time
from collections import Counter

import pytest
from clusters import cluster_of
from hosts import missing

from ticket_search.results.events import read_events
from ticket_search.results.reading import load_results

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())
SEARCH = ("run", "search_spaces/digits.yaml", "--trials", "30", "--set", "search.sampler=random")
SEARCH += (
    "--set",
    "training.iterations=1500",
    "--set",
    "training.evaluate_every=100",
    "--set",
    "search.early_stopping=null",
)
SEARCH += ("--set", "trajectory.max_levels=3", "--set", "search.checkpoint_seconds=1")


@pytest.fixture
def cluster():
    with cluster_of(3, listed=4) as made:
        yield made


def finished_on(output):
    """Host -> levels that it has finished."""
    counts = Counter()
    for file in (output / "events").glob("*"):
        counts[file.name.partition("-")[0]] += file.read_text().count('"level_finished"')
    return counts


def wait_until(is_so, running, seconds=180):
    deadline = time.monotonic() + seconds
    while not is_so():
        assert running.poll() is None, running.communicate()[0]
        assert time.monotonic() < deadline, "it did not come to that in time"
        time.sleep(0.5)


def test_hosts_are_cut_off_killed_and_added(cluster):
    output = cluster.shared / "run"
    running = cluster.start_to_submit(*SEARCH, "--output", str(output))
    wait_until(lambda: all(finished_on(output)[f"tshost{n}"] for n in (1, 2, 3)), running)
    cluster.hosts.cut_off(2)
    cluster.hosts.kill(3)
    cluster.hosts.start(4)
    wait_until(lambda: finished_on(output)["tshost4"], running)
    said = running.communicate(timeout=400)[0]
    assert running.returncode == 0, said
    results = load_results(output)
    assert results.trajectories["status"].tolist() == ["completed"] * 30
    assert (results.levels["level"].value_counts() == 30).all()
    assert not results.levels.duplicated(["trajectory_id", "level"]).any()
    finished = Counter(event["level_key"] for event in read_events(output) if event["event"] == "level_finished")
    assert set(finished.values()) == {1}
    assert len(finished) == results.levels["level_key"].nunique()
