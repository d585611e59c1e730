"""`ray up` and `ray submit` onto hosts that are really separate, from the cluster file that ships."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from clusters import ROOT, SHIPPED, cluster_of
from hosts import missing

from ticket_search.results.events import read_events
from ticket_search.results.reading import load_results

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


@pytest.fixture(scope="module")
def cluster():
    with cluster_of(2) as made:
        yield made
        made.succeed("down", "--yes", made.file)
        assert "gcs_server" not in made.hosts.ssh(1, "ps ax").stdout


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
    token = (cluster.home / ".ray" / "auth_token").read_text().strip()
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
