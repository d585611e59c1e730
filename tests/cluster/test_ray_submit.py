"""`ray up` and `ray submit` onto hosts that are really separate, from the cluster file that ships."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hosts import Hosts, missing

from ticket_search.results.events import read_events
from ticket_search.results.reading import load_results

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "cluster" / "on_prem.yaml"
COUNT_NODES = "import ray; ray.init('auto', log_to_driver=False); print(sum(node['Alive'] for node in ray.nodes()))"
pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


class Cluster:
    """Two hosts, and the commands that a user types on a third machine, this one."""

    def __init__(self, hosts, folder):
        self.hosts = hosts
        self.shared = folder / "shared"
        self.shared.mkdir()
        self.file = folder / "on_prem.yaml"
        self._env = os.environ | {"HOME": str(folder / "home"), "RAY_TMPDIR": str(folder / "ray")}
        self._env |= {"RAY_USAGE_STATS_ENABLED": "0", "PATH": f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}"}
        for name in ("home", "ray"):
            (folder / name).mkdir()

    def ray(self, *arguments, timeout=240):
        return subprocess.run(
            ["ray", *map(str, arguments)], cwd=ROOT, env=self._env, capture_output=True, text=True, timeout=timeout
        )

    def submit(self, *arguments, start=False):
        return self.ray("submit", *(["--start"] if start else []), self.file, "cluster/search.py", "--", *arguments)

    def wait_for_nodes(self, count):
        """`ray up` returns when the head is there; the others join within the minute."""
        for _ in range(30):
            found = self.hosts.ssh(1, f"source ~/.bashrc; RAY_AUTH_MODE=token python -c {shlex.quote(COUNT_NODES)}")
            if found.stdout.split()[-1:] == [str(count)]:
                return
            time.sleep(2)
        raise AssertionError(found.stdout + found.stderr)


def filled_in(hosts, workers):
    """The shipped file with the user's machines, name and key, and nothing else changed."""
    text = SHIPPED.read_text()
    for place, value in (
        ("head_ip: HEAD ", f"head_ip: {hosts.address(1)} "),
        ("[WORKER_1, WORKER_2]", str([hosts.address(n) for n in workers])),
        ("ssh_user: YOU ", "ssh_user: root "),
        ("# ssh_private_key: ~/.ssh/id_ed25519", f"ssh_private_key: {hosts.key}"),
    ):
        assert text.count(place) == 1
        text = text.replace(place, value)
    return text


@pytest.fixture(scope="module")
def cluster():
    folder = Path("/var/tmp") / f"ticket_search_{os.getpid()}"
    folder.mkdir()
    try:
        with Hosts(folder / "hosts") as hosts:
            for number in (1, 2):
                hosts.start(number)
            made = Cluster(hosts, folder)
            made.file.write_text(filled_in(hosts, [2]))
            assert made.ray("get-auth-token", "--generate").returncode == 0
            up = made.ray("up", "--yes", made.file)
            assert up.returncode == 0, up.stdout + up.stderr
            made.wait_for_nodes(2)
            yield made
            down = made.ray("down", "--yes", made.file)
            assert down.returncode == 0, down.stdout + down.stderr
            assert "gcs_server" not in hosts.ssh(1, "ps ax").stdout
    finally:
        shutil.rmtree(folder, ignore_errors=True)


SMALL = ("--set", "training.iterations=100", "--set", "trajectory.max_levels=2", "--set", "space.rewind_iteration=[0]")


def test_a_search_runs_on_all_hosts_and_takes_arguments_with_spaces(cluster):
    output = cluster.shared / "a run"
    # `ray submit` hands its words to a shell on the head, so a word with a space is quoted twice.
    arguments = ("run", "search_spaces/digits.yaml", "--trials", "12", *SMALL, "--output", f"'{output}'")
    said = cluster.submit(*arguments)
    assert said.returncode == 0, said.stdout + said.stderr
    results = load_results(output)
    assert results.trajectories["status"].tolist() == ["completed"] * 12
    assert not results.levels.duplicated(["trajectory_id", "level"]).any()
    assert (results.levels["level"].value_counts() == 12).all()
    hosts = {path.name.partition("-")[0] for path in (output / "events").iterdir()}
    assert hosts == {"tshost1", "tshost2"}
    finished = [event["level_key"] for event in read_events(output) if event["event"] == "level_finished"]
    assert len(finished) == len(set(finished)) == results.levels["level_key"].nunique()
    assert "Sparsest matching tickets" in said.stdout or "No ticket matches" in said.stdout
    # Again, on the running cluster or one that is started if it is not: nothing is trained anew.
    again = cluster.submit(*arguments, start=True)
    assert again.returncode == 0, again.stdout + again.stderr
    pd.testing.assert_frame_equal(load_results(output).levels, results.levels)


def test_bad_input_is_one_message_and_no_success(cluster):
    said = cluster.submit("run", "search_spaces/digits.yaml", "--set", "space.prunning_rate=[0.2]")
    assert said.returncode != 0
    assert "unknown field to search 'prunning_rate' (did you mean 'pruning_rate'?)" in said.stdout
    assert "Traceback" not in said.stdout


def test_without_the_token_the_door_is_shut(cluster):
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


def test_the_token_is_for_its_user_alone_and_said_nowhere(cluster):
    token = (Path(cluster._env["HOME"]) / ".ray" / "auth_token").read_text().strip()
    assert len(token) >= 32
    for number in (1, 2):
        assert cluster.hosts.ssh(number, "stat -c %a ~/.ray/auth_token").stdout.strip() == "600"
        assert cluster.hosts.ssh(number, f"grep -rl {token} /tmp/ray/session_latest/logs || true").stdout == ""


def test_the_shipped_file_is_what_rays_schema_asks_for():
    import jsonschema
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    plain = yaml.safe_load(SHIPPED.read_text())
    jsonschema.validate(plain, schema)
    starts = plain["head_start_ray_commands"] + plain["worker_start_ray_commands"]
    assert all("RAY_AUTH_MODE=token" in command for command in starts if "ray start" in command)
    assert "--dashboard-host=127.0.0.1" in " ".join(plain["head_start_ray_commands"])
    # What is sent is there, and nobody's data or results are in it.
    sent = [source for source in plain["file_mounts"].values() if not source.startswith("~")]
    assert all((ROOT / source).exists() for source in sent)
    assert not {"data", "runs", ".", ".git"} & set(sent)
