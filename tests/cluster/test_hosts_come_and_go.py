"""A search continues while hosts of its cluster are cut off, killed or added, and it loses no finished level."""

import re
import time
from collections import Counter

from clusters import cluster_of
from helpers import finished_levels

from ticket_search.results.reading import load_results

SETTINGS = {
    "search.sampler": "random",
    "search.early_stopping": "null",
    "search.checkpoint_seconds": 1,
    "training.evaluate_every": 100,
    "pruning.max_levels": 3,
}
SEARCH = ["run", "search_spaces/digits.yaml", "--trials", "30"]
SEARCH += [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]


def finished_on(output):
    """Return the number of levels that each host has finished, by host name."""
    counts = Counter()
    for file in (output / "events").glob("*"):
        counts[file.name.partition("-")[0]] += file.read_text().count('"level_finished"')
    return counts


def wait_until(is_so, running, seconds=180):
    deadline = time.monotonic() + seconds
    while not is_so():
        assert running.poll() is None, running.communicate()[0]
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.5)


def assert_whole(output):
    """Assert that every trajectory is complete, no row is duplicated and no level was trained twice."""
    results = load_results(output)
    assert results.trajectories["status"].tolist() == ["completed"] * 30
    assert (results.levels["level"].value_counts() == 30).all()
    assert not results.levels.duplicated(["trajectory_id", "level"]).any()
    finished = finished_levels(output)
    assert set(finished.values()) == {1}
    assert len(finished) == results.levels["level_key"].nunique()


def test_hosts_are_cut_off_killed_and_added():
    with cluster_of(3, listed=4) as cluster:
        output = cluster.shared / "run"
        # Train long enough that the running hosts cannot finish all levels before another host joins.
        running = cluster.start_to_submit(*SEARCH, "--set", "training.iterations=6000", "--output", str(output))
        wait_until(lambda: all(finished_on(output)[cluster.hosts.name(n)] for n in (1, 2, 3)), running)
        cluster.hosts.cut_off(2)
        cluster.hosts.kill(3)
        cluster.hosts.start(4)
        wait_until(lambda: finished_on(output)[cluster.hosts.name(4)], running)
        said = running.communicate(timeout=600)[0]
        assert running.returncode == 0, said
        assert_whole(output)


def test_a_late_host_without_the_storage_is_left_out():
    with cluster_of(2, listed=3) as cluster:
        output = cluster.shared / "run"
        running = cluster.start_to_submit(*SEARCH, "--set", "training.iterations=3000", "--output", str(output))
        wait_until(lambda: finished_on(output)[cluster.hosts.name(2)], running)
        cluster.hosts.start(3)
        # Mount an empty disk over the shared storage before Ray starts on this host.
        assert cluster.hosts.ssh(3, f"mount -t tmpfs tmpfs {cluster.shared}").returncode == 0
        said = running.communicate(timeout=600)[0]
        assert running.returncode == 0, said
        # `ray submit` allocates a terminal, which wraps lines and inserts escape sequences that move the cursor.
        said = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\s", "", said)
        line = f"excluded a node; its trajectories will run on other nodes: on {cluster.hosts.name(3)}, '{output}"
        assert said.count("excludedanode") == said.count(line.replace(" ", "")) == 1, said
        assert not finished_on(output)[cluster.hosts.name(3)]
        assert_whole(output)


def test_another_cluster_resumes_after_the_head_is_lost():
    with cluster_of(2) as cluster:
        output = cluster.shared / "run"
        running = cluster.start_to_submit(*SEARCH, "--set", "training.iterations=3000", "--output", str(output))
        wait_until(lambda: all(finished_on(output)[cluster.hosts.name(n)] for n in (1, 2)), running)
        cluster.hosts.kill(1)
        running.communicate(timeout=120)
        assert running.returncode != 0
        before = sum(finished_on(output).values())
        # The remaining worker joins the new head.
        cluster.hosts.start(3)
        cluster.fill_in([2], head=3)
        cluster.succeed("up", "--yes", cluster.file)
        cluster.wait_for_nodes(2)
        resumed = cluster.submit("resume", str(output))
        assert resumed.returncode == 0, resumed.stdout + resumed.stderr
        assert before < sum(finished_on(output).values())
        assert finished_on(output)[cluster.hosts.name(3)]
        assert_whole(output)
