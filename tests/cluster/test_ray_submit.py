"""Tests for `ray up`, `ray submit` and `ray job submit` on simulated hosts, with the shipped cluster file."""

import json
import os
import re
import shlex
import socket
import time
import urllib.error
import urllib.request
from contextlib import suppress

import pandas as pd
import pytest
from clusters import ROOT, cluster_of
from helpers import finished_levels

from ticket_search.results.reading import load_results
from ticket_search.runs.pull import pull


@pytest.fixture(scope="module")
def cluster():
    with cluster_of(2) as made:
        yield made
        made.succeed("down", "--yes", made.file)
        assert "gcs_server" not in made.hosts.ssh(1, "ps ax").stdout


SMALL = ("--set", "training.iterations=100", "--set", "pruning.max_levels=2", "--set", "space.rewind_iteration=[0]")


def test_a_search_runs_on_all_hosts_and_takes_arguments_with_spaces(cluster):
    output = cluster.shared / "a run"
    # `ray submit` passes its arguments to a shell on the head, so an argument with a space needs extra quotes.
    arguments = ("run", "search_spaces/digits.yaml", "--trials", "12", *SMALL, "--output", f"'{output}'")
    said = cluster.submit(*arguments)
    assert said.returncode == 0, said.stdout + said.stderr
    results = load_results(output)
    assert results.trajectories["status"].tolist() == ["completed"] * 12
    assert not results.levels.duplicated(["trajectory_id", "level"]).any()
    assert (results.levels["level"].value_counts() == 12).all()
    hosts = {path.name.partition("-")[0] for path in (output / "events").iterdir()}
    assert hosts == {cluster.hosts.name(1), cluster.hosts.name(2)}
    finished = finished_levels(output)
    assert set(finished.values()) == {1}
    assert len(finished) == results.levels["level_key"].nunique()
    assert "Sparsest matching tickets" in said.stdout or "No ticket matches" in said.stdout
    # Running the same command again with --start trains nothing.
    again = cluster.submit(*arguments, start=True)
    assert again.returncode == 0, again.stdout + again.stderr
    cluster.wait_for_nodes(2)  # --start restarts Ray
    pd.testing.assert_frame_equal(load_results(output).levels, results.levels)


def test_results_are_fetched_without_the_store(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("RSYNC_RSH", shlex.join(["ssh", *cluster.hosts.options]))
    done = pull(f"root@{cluster.hosts.address(1)}:{cluster.shared / 'a run'}", tmp_path / "copy")
    assert done.files > 10
    assert not (tmp_path / "copy" / "store").exists()
    pd.testing.assert_frame_equal(load_results(tmp_path / "copy").levels, load_results(cluster.shared / "a run").levels)


def test_a_dry_run_prints_the_plan_and_creates_nothing(cluster):
    said = cluster.submit("run", "digits", "--dry-run", "--output", str(cluster.shared / "planned"))
    assert said.returncode == 0, said.stdout + said.stderr
    cpus = os.cpu_count()
    assert f"plan: {2 * cpus} trajectories at a time, each with 1 CPU and 1 thread" in said.stdout
    assert f"  2 nodes of {cpus} CPUs and 0 GPUs: {cpus} each" in said.stdout
    assert "disk: about" in said.stdout
    assert not (cluster.shared / "planned").exists()


def test_resources_that_no_node_has_are_refused_at_once(cluster):
    said = cluster.submit("run", "digits", "--set", "resources.gpus=1", "--output", str(cluster.shared / "gpus"))
    assert said.returncode != 0
    assert "resources: no node has 1 CPU and 1 GPU for a trajectory; available: 2 nodes of" in said.stdout
    assert not (cluster.shared / "gpus").exists()


def test_storage_that_a_node_does_not_share_is_refused_before_anything_is_trained(cluster):
    said = cluster.submit("run", "digits", "--output", "/root/my_run")
    assert said.returncode != 0
    place = f"node {cluster.hosts.address(2)}: on {cluster.hosts.name(2)}"
    refused = f"{place}, '/root/my_run' is not the folder that the search uses"
    assert refused in said.stdout
    assert "Traceback" not in said.stdout
    assert cluster.hosts.ssh(1, "ls /root/my_run").returncode != 0


def test_data_missing_on_the_head_is_named(cluster):
    said = cluster.submit("run", "mnist_lenet", "--data-dir", "/root/data", "--output", str(cluster.shared / "mnist"))
    assert said.returncode != 0
    missed = "which sends the data to every node: dataset 'mnist' not found: neither '/root/data"
    assert f"on {cluster.hosts.name(1)}, {missed}" in said.stdout


def test_a_job_is_submitted_through_a_tunnel_and_only_with_the_token(cluster):
    tunnel, port = cluster.hosts.tunnel(1, 8265)
    output = cluster.shared / "job"
    job = ("job", "submit", "--address", f"http://127.0.0.1:{port}", "--", "ticket-search", "run", "digits")
    job += ("--trials", "2", *SMALL, "--output", str(output))
    try:
        wait_for_port(port)
        assert [status_of_job_request(port, f"touch {output}", token) for token in (None, "0" * 64)] == [401, 403]
        for refusal in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "0" * 64}):
            refused = cluster.ray(*job, **{"RAY_AUTH_MODE": "token", **refusal})
            assert refused.returncode != 0
            assert "authentication" in refused.stderr
        assert not output.exists()
        accepted = cluster.ray(*job, RAY_AUTH_MODE="token")
        assert accepted.returncode == 0, accepted.stdout + accepted.stderr
        assert load_results(output).trajectories["status"].tolist() == ["completed"] * 2
    finally:
        tunnel.terminate()
        tunnel.wait()


def status_of_job_request(port, entrypoint, token):
    """Submit a job to the job server over plain HTTP; return the HTTP status of the response."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    body = json.dumps({"entrypoint": entrypoint}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/api/jobs/", body, headers)
    try:
        return urllib.request.urlopen(request, timeout=30).status
    except urllib.error.HTTPError as error:
        return error.code


def wait_for_port(port):
    for _ in range(100):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise AssertionError(f"nothing listens on {port}")


def test_only_documented_ports_listen_beyond_loopback(cluster):
    page = (ROOT / "docs" / "clusters.md").read_text()
    documented = {}
    for first, last, where in re.findall(r"^\| (\d+)(?: to (\d+))? \| (head|all) \|", page, re.MULTILINE):
        for port in range(int(first), int(last or first) + 1):
            documented[port] = where
    assert documented[6379] == "head"
    assert (
        cluster.submit("run", "digits", *SMALL, "--trials", "4", "--output", str(cluster.shared / "ports")).returncode
        == 0
    )
    for number in (1, 2):
        listening = cluster.hosts.ssh(number, "ss -Hltnp").stdout.splitlines()
        assert any("raylet" in line for line in listening)
        for line in listening:
            address, _, port = line.split()[3].rpartition(":")
            if address.strip("[]").removeprefix("::ffff:") in ("127.0.0.1", "::1") or "sshd" in line:
                continue
            assert documented.get(int(port)) in ("all", "head" if number == 1 else "all"), line
        # The dashboard, which is also the job server, may listen on loopback only.
        assert not [line for line in listening if ":8265 " in line and "127.0.0.1:8265" not in line]


def test_bad_input_gives_one_message_and_fails(cluster):
    said = cluster.submit("run", "search_spaces/digits.yaml", "--set", "space.prunning_rate=[0.2]")
    assert said.returncode != 0
    assert "unknown field to search 'prunning_rate' (did you mean 'pruning_rate'?)" in said.stdout
    assert "Traceback" not in said.stdout


def test_connections_without_the_token_are_refused(cluster):
    connect = "import ray; ray.init('{}:6379', log_to_driver=False); print('CONNECTED', len(ray.nodes()))"
    address = cluster.hosts.address(1)

    def tried(environment):
        code = connect.format(address)
        return cluster.hosts.ssh(2, f'source ~/.bashrc; {environment} timeout 40 python -c "{code}"')

    assert "CONNECTED 2" in tried("RAY_AUTH_MODE=token").stdout
    for environment in ("RAY_AUTH_MODE=disabled", "RAY_AUTH_MODE=token RAY_AUTH_TOKEN=" + "0" * 64):
        refused = tried(environment)
        assert refused.returncode != 0
        assert "CONNECTED" not in refused.stdout


def test_only_its_user_can_read_the_token_and_no_log_contains_it(cluster):
    token = (cluster.home / ".ray" / "auth_token").read_text().strip()
    assert len(token) >= 32
    for number in (1, 2):
        assert cluster.hosts.ssh(number, "stat -c %a ~/.ray/auth_token").stdout.strip() == "600"
        assert cluster.hosts.ssh(number, f"grep -rl {token} /tmp/ray/session_latest/logs || true").stdout == ""
