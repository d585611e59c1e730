"""The shipped cluster files conform to their launchers' schemas, and open and upload only what is needed.

The Slurm script is also run, with stubs in place of `srun`, `ray` and `ticket-search`.
"""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
import tomllib
from copy import deepcopy
from pathlib import Path

import boto3
import jsonschema
import pytest
import ray.autoscaler
import yaml
from moto import mock_aws
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "cluster"
CLOUDS, LAUNCHED = ["aws", "gcp"], ["aws", "gcp", "on_prem"]
SLURM = FOLDER / "slurm.sh"


def launched(name):
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


@pytest.mark.parametrize("name", LAUNCHED)
def test_a_launcher_file_conforms_to_rays_schema(name):
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(launched(name), schema)
    # Ray fills in defaults for keys that a file omits. Its default commands would install another version of Ray.
    prepared = prepare_config(launched(name))
    validate_config(prepared)
    for role in ("head", "worker"):
        own = launched(name)["setup_commands"] + launched(name).get(f"{role}_setup_commands", [])
        assert prepared[f"{role}_setup_commands"] == own


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_starts_with_the_token_and_with_the_dashboard_on_loopback(name):
    config = launched(name)
    for part, count in (("head_start_ray_commands", 1), ("worker_start_ray_commands", 1)):
        starts = [command for command in config[part] if "ray start" in command]
        assert len(starts) == count
        for command in starts:
            assert re.search(r"export [^;]*RAY_AUTH_MODE=token[^;]*;.*ray start", command)
            assert "RAY_USAGE_STATS_ENABLED=0" in command
    head = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in head
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert config["setup_commands"][0] == "chmod 600 ~/.ray/auth_token"


def test_ray_still_has_the_setting_for_how_long_to_wait_for_a_machine_that_is_off():
    start = " ".join(launched("on_prem")["head_start_ray_commands"])
    (name, seconds) = re.search(r"(AUTOSCALER_NODE_\w+)=(\d+)", start).groups()
    prints = f"from ray.autoscaler._private import updater; print(updater.{name})"
    said = subprocess.check_output([sys.executable, "-c", prints], env=os.environ | {name: seconds}, text=True)
    assert said.strip() == seconds


@pytest.mark.parametrize("name", LAUNCHED)
def test_the_uploaded_paths_exist_and_contain_no_data_results_or_secrets(name):
    config = launched(name)
    sent = [source for source in config["file_mounts"].values() if not source.startswith("~")]
    assert all((ROOT / source).exists() for source in sent)
    # Ray hashes everything that it uploads, which would take minutes for the whole repository.
    assert not {"data", "runs", ".", "./", ".git", ".venv", "tests"} & set(sent)
    # The patterns must not include data/, because the package contains a folder of that name.
    assert config["rsync_exclude"] == ["**/__pycache__"]
    # These paths are required to install the package on the machines.
    targets = {target.removeprefix("~/ticket-search/") for target in config["file_mounts"]}
    assert {"ticket_search", "search_spaces", "pyproject.toml", "setup.py", "constraints.txt", "Makefile"} <= targets


@pytest.mark.skipif(not (shutil.which("rsync") and (ROOT / ".git").exists()), reason="needs rsync and a git clone")
@pytest.mark.parametrize("name", LAUNCHED)
def test_all_tracked_files_are_uploaded(name, tmp_path):
    config = launched(name)
    excludes = [f"--exclude={pattern}" for pattern in config["rsync_exclude"]]
    folders = [source for source in config["file_mounts"].values() if (ROOT / source).is_dir()]
    for source in folders:
        subprocess.run(["rsync", "-a", *excludes, f"{ROOT / source}/", f"{tmp_path / source}/"], check=True)
    listed = ["git", "ls-files", *folders]
    tracked = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert "ticket_search/data/digits.npz" in tracked
    assert [file for file in tracked if not (tmp_path / file).exists()] == []


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_a_file_contains_no_secret_and_marks_where_to_fill_in(path):
    text = path.read_text()
    assert not re.search(
        r"AKIA[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE KEY|auth_token: *[\"']?[0-9a-f]{16}|[0-9a-f]{40}", text
    )
    assert path.name == "search.py" or "# <-" in text


@pytest.mark.parametrize("name", CLOUDS)
def test_the_three_commands_are_at_the_top(name):
    top = (FOLDER / f"{name}.yaml").read_text().partition("cluster_name:")[0]
    scheme = {"aws": "s3", "gcp": "gs"}[name]
    for command in (
        f"ray up --yes cluster/{name}.yaml",
        f"ray submit cluster/{name}.yaml cluster/search.py -- run search_spaces/digits.yaml --output {scheme}://BUCKET/",
        f"ticket-search pull {scheme}://BUCKET/runs/digits runs/digits",
    ):
        assert top.count(command) == 1


@pytest.mark.parametrize("name", CLOUDS)
def test_only_workers_train_on_spot_machines_and_their_number_is_bounded(name):
    config = launched(name)
    types = deepcopy(config["available_node_types"])
    head = types.pop(config["head_node_type"])
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]
    assert "scheduling" not in head["node_config"]
    assert sorted(types) == ["cpu", "gpu"]
    for made in types.values():
        assert made["min_workers"] == 0
        assert 1 <= made["max_workers"] <= config["max_workers"] <= 10
    assert 1 <= config["idle_timeout_minutes"] <= 15


def test_gcp_workers_are_spot_machines_that_may_access_only_the_storage():
    config = launched("gcp")
    types = config["available_node_types"]
    # Ray's launcher adds a service account only to the head, so the file must give one to the workers.
    assert "serviceAccounts" not in types["head"]["node_config"]
    for name in ("cpu", "gpu"):
        node = types[name]["node_config"]
        assert node["scheduling"]["provisioningModel"] == "SPOT"
        assert node["scheduling"]["instanceTerminationAction"] == "DELETE"
        assert node["serviceAccounts"][0]["scopes"] == ["https://www.googleapis.com/auth/devstorage.read_write"]
        assert types[name]["resources"]["CPU"] >= 1
    assert types["gpu"]["resources"]["GPU"] == 1
    # The machines' names contain the cluster's name. On GCP, they may contain no underscores or capital letters.
    assert re.fullmatch("[a-z][-a-z0-9]*", config["cluster_name"])
    assert [c for c in config["head_setup_commands"] if "pip install" in c and "google-api-python-client" in c]


@pytest.fixture
def amazon(monkeypatch, tmp_path):
    """A mock of AWS with the two instance profiles that docs/clusters.md tells users to create."""
    from ray.autoscaler._private.aws import config as ray_aws

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(ray_aws.time, "sleep", lambda seconds: None)
    with mock_aws():
        iam = boto3.client("iam", region_name="us-west-2")
        for name in ("ticket-search-head", "ticket-search-worker"):
            iam.create_instance_profile(InstanceProfileName=name)
        yield boto3.client("ec2", region_name="us-west-2")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_on_aws_ray_opens_only_ssh_and_starts_workers_as_spot(amazon):
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    image = amazon.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    text = (FOLDER / "aws.yaml").read_text()
    assert text.count("ImageId: AMI_") == 3
    filled_in = yaml.safe_load(re.sub("ImageId: AMI_[A-Z]+", f"ImageId: {image}", text))
    config = AWSNodeProvider.fillout_available_node_types_resources(prepare_config(filled_in))
    validate_config(config)
    types = config["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0, "GPU": 0}
    assert types["cpu"]["resources"]["CPU"] == 16
    assert "GPU" not in types["cpu"]["resources"]
    assert types["gpu"]["resources"]["GPU"] == 1

    made = AWSNodeProvider.bootstrap_config(config)
    (group,) = amazon.describe_security_groups(GroupNames=["ticket-search"])["SecurityGroups"]
    within, outside = group["IpPermissions"]
    assert [pair["GroupId"] for pair in within["UserIdGroupPairs"]] == [group["GroupId"]]
    assert within["IpProtocol"] == "-1"
    assert within["IpRanges"] == []
    assert (outside["FromPort"], outside["ToPort"], outside["IpProtocol"]) == (22, 22, "tcp")

    provider = AWSNodeProvider(made["provider"], made["cluster_name"])
    for name, node_type in made["available_node_types"].items():
        (node,) = provider.create_node(node_type["node_config"], {"ray-node-kind": name}, 1).values()
        assert node.instance_lifecycle == (None if name == "head" else "spot")
        assert [found["GroupName"] for found in node.security_groups] == ["ticket-search"]
        role = "head" if name == "head" else "worker"
        assert node.iam_instance_profile["Arn"].endswith(f"instance-profile/ticket-search-{role}")


def test_the_required_ray_version_supports_tokens():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (floor,) = [
        re.fullmatch(r"ray\[tune\]>=(\d+)\.(\d+),.*", d) for d in project["dependencies"] if d.startswith("ray")
    ]
    assert (int(floor[1]), int(floor[2])) >= (2, 54)
    # The head needs boto3 to start the workers.
    assert re.search("^boto3==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


# The schema follows KubeRay 1.6's CRD reference: https://docs.ray.io/en/latest/cluster/kubernetes/references/api.html
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_COUNT = {"type": "integer", "minimum": 0}


def _only(required, **fields):
    return {"type": "object", "properties": fields, "required": required.split(), "additionalProperties": False}


_WORKERS = _only(
    "groupName minReplicas maxReplicas rayStartParams template",
    **dict.fromkeys(["replicas", "minReplicas", "maxReplicas", "idleTimeoutSeconds", "numOfHosts"], _COUNT),
    groupName={"type": "string"},
    rayStartParams=_TEXTS,
    template={"type": "object"},
)
_HEAD = _only(
    "rayStartParams template",
    rayStartParams=_TEXTS,
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    template={"type": "object"},
)
_CLUSTER = _only(
    "headGroupSpec",
    rayVersion={"type": "string"},
    authOptions=_only("mode", mode={"enum": ["disabled", "token"]}, secretName={"type": "string"}),
    enableInTreeAutoscaling={"type": "boolean"},
    autoscalerOptions=_only(
        "",
        idleTimeoutSeconds=_COUNT,
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        version={"enum": ["v1", "v2"]},
        resources={"type": "object"},
    ),
    headGroupSpec=_HEAD,
    workerGroupSpecs={"type": "array", "items": _WORKERS},
)
_JOB = _only(
    "entrypoint rayClusterSpec",
    entrypoint={"type": "string"},
    **dict.fromkeys(["backoffLimit", "ttlSecondsAfterFinished", "activeDeadlineSeconds"], _COUNT),
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    submitterConfig=_only("", backoffLimit=_COUNT),
    shutdownAfterJobFinishes={"type": "boolean"},
    runtimeEnvYAML={"type": "string"},
    suspend={"type": "boolean"},
    rayClusterSpec=_CLUSTER,
)


@pytest.fixture(scope="module")
def kuberay():
    """The RayJob, the volume claim, and a dictionary of the pod templates by group name."""
    job, claim = yaml.safe_load_all((FOLDER / "kuberay.yaml").read_text())
    cluster = job["spec"]["rayClusterSpec"]
    pods = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    return job, claim, pods | {"head": cluster["headGroupSpec"]["template"]}


def test_the_rayjob_conforms_to_kuberays_schema(kuberay):
    job, _, _ = kuberay
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    jsonschema.validate(job["spec"], _JOB)


def test_the_pods_and_the_claim_conform_to_kubernetes_schemas(kuberay):
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    _, claim, pods = kuberay
    for template in pods.values():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, **template}
        kubernetes_validate.validate(pod, "1.34", strict=True)
    kubernetes_validate.validate(claim, "1.34", strict=True)


def test_the_rayjob_needs_a_token_and_keeps_trajectories_off_the_head(kuberay):
    job, _, _ = kuberay
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0", "num-gpus": "0"}
    pinned = re.search("^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    assert cluster["rayVersion"] == pinned


def test_the_rayjob_is_retried_on_the_same_storage_and_cleaned_up(kuberay):
    job, claim, pods = kuberay
    spec = job["spec"]
    assert spec["entrypoint"].startswith("ticket-search run digits --output /results/")
    assert spec["backoffLimit"] >= 1
    assert spec["shutdownAfterJobFinishes"]
    for template in pods.values():
        assert template["spec"]["restartPolicy"] == "Never"
        (volume,) = template["spec"]["volumes"]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        (container,) = template["spec"]["containers"]
        assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/results"}]
        assert container["image"] == "REGISTRY/ticket-search:1"
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_kuberay_scales_workers_on_spot_nodes(kuberay):
    job, _, pods = kuberay
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"]
    assert cluster["autoscalerOptions"]["idleTimeoutSeconds"] >= 60
    assert {group["minReplicas"] for group in cluster["workerGroupSpecs"]} == {0}
    assert all(1 <= group["maxReplicas"] <= 8 for group in cluster["workerGroupSpecs"])
    head = pods.pop("head")["spec"]
    assert "nodeSelector" not in head
    assert "tolerations" not in head
    ((term,),) = [
        found["matchExpressions"]
        for found in head["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
            "nodeSelectorTerms"
        ]
    ]
    for template in pods.values():
        assert list(template["spec"]["nodeSelector"]) == [term["key"]]
        assert term["operator"] == "DoesNotExist"
    gpus = {
        name: pod["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu") for name, pod in pods.items()
    }
    assert gpus == {"cpu": None, "gpu": "1"}


def test_the_slurm_script_passes_bash_and_shellcheck():
    assert SLURM.stat().st_mode & stat.S_IXUSR
    subprocess.run(["bash", "-n", SLURM], check=True)
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    found = subprocess.run(["shellcheck", SLURM], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_slurm_is_asked_for_whole_nodes_a_warning_signal_and_requeueing():
    asked = re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?", SLURM.read_text(), re.MULTILINE)
    asked = dict(asked)
    assert asked["ntasks-per-node"] == "1"
    assert asked["signal"].startswith("B:USR1@")
    assert {"requeue", "exclusive"} <= set(asked)


# The stub for `srun` runs the task once, on this machine, and then hangs, like a node whose processes do not exit. The
# stub for `ray symmetric-run` runs the command after `--`, and the stub for `ticket-search` runs the code in $SEARCH.
# All three record their arguments. The stub for `sleep` shortens `sleep 1` to save time.
_STUBS = {
    "sleep": f'[ "$1" = 1 ] && set -- 0.05; exec {shutil.which("sleep")} "$@"',
    "srun": 'printf "%s\\n" "$@" > "$SAID/srun"; while [ "$1" != bash ]; do shift; done; "$@"; exec sleep 100',
    "ray": 'printf "%s\\n" "$@" > "$SAID/ray"; env > "$SAID/env"; [ -z "${NO_RAY:-}" ] || exit 0\n'
    'while [ "$1" != -- ]; do shift; done; shift; exec "$@"',
    "ticket-search": 'printf "%s\\n" "$@" > "$SAID/arguments"; exec python -c "$SEARCH"',
}


@pytest.fixture
def job(tmp_path):
    """An object that runs the script as Slurm would, with the stubs first on the PATH, and reads what they recorded."""
    folders = {name: tmp_path / name for name in ("bin", "said", "home")}
    for folder in folders.values():
        folder.mkdir()
    for name, body in _STUBS.items():
        (folders["bin"] / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (folders["bin"] / name).chmod(0o755)
    token = folders["home"] / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("0" * 64)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_"))}
    env = inherited | {
        "PATH": os.pathsep.join([str(folders["bin"]), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "HOME": str(folders["home"]),
        "SAID": str(folders["said"]),
        "SEARCH": "",
        # Make the ID unique to this process, because the script derives the name of a folder in /tmp from it.
        "SLURM_JOB_ID": str(10_000_000 + os.getpid()),
        "SLURM_JOB_NUM_NODES": "3",
        "SLURM_CPUS_ON_NODE": "64",
        "SLURM_CPUS_PER_TASK": "6",
        "SLURM_GPUS_ON_NODE": "2",
    }

    class Job:
        said = folders["said"]

        def start(self, *arguments, **changed):
            changed = {name: value for name, value in (env | changed).items() if value is not None}
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            return subprocess.Popen(["bash", SLURM, *arguments], env=changed, **pipes)

        def run(self, *arguments, **changed):
            process = self.start(*arguments, **changed)
            _, errors = process.communicate(timeout=60)
            return process.returncode, errors

        def told(self, name):
            return (self.said / name).read_text().splitlines()

    Job.token = token
    Job.id = int(env["SLURM_JOB_ID"])
    return Job()


def test_on_slurm_arguments_arrive_intact_and_ray_gets_the_resources(job):
    arguments = [
        "run",
        "my space.yaml",
        "--set",
        "space.rewind_iteration=[0, 20]",
        "--output",
        "/shared/a run",
        "$HOME",
        "--",
    ]
    assert job.run(*arguments) == (0, "")
    assert job.told("arguments") == arguments
    told = job.told("ray")
    assert told[0] == "symmetric-run"
    assert told[told.index("--min-nodes") + 1] == "3"
    assert {"--num-cpus=6", "--num-gpus=2", "--dashboard-host=127.0.0.1"} < set(told)
    assert {"--ntasks-per-node=1", "--cpus-per-task=6"} < set(job.told("srun"))
    env = dict(line.split("=", 1) for line in job.told("env") if "=" in line)
    address = told[told.index("--address") + 1]
    assert address.endswith(f":{20000 + job.id % 10000}")
    # These variables make the search use this Ray cluster and no other.
    assert (env["RAY_ADDRESS"], env["RAY_AUTH_MODE"]) == (address, "token")
    assert env["RAY_TMPDIR"] == f"/tmp/ray_{job.id}_0"
    assert not Path(env["RAY_TMPDIR"]).exists()


def test_on_slurm_without_a_count_of_cpus_or_gpus_all_cpus_are_used(job):
    assert job.run("status", "x", SLURM_CPUS_PER_TASK=None, SLURM_GPUS_ON_NODE=None)[0] == 0
    assert {"--num-cpus=64", "--num-gpus=0"} < set(job.told("ray"))


@pytest.mark.parametrize("code", [0, 2, 3, 130])
def test_on_slurm_the_exit_code_is_that_of_the_search(job, code):
    assert job.run("run", "digits", SEARCH=f"raise SystemExit({code})")[0] == code


def test_on_slurm_the_job_fails_if_ray_does_not_start(job):
    code, errors = job.run("run", "digits", NO_RAY="1")
    assert code == 1
    assert "the search was not started" in errors


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_on_slurm_the_search_is_told_that_its_time_is_up(job, number):
    search = (
        "import os, pathlib, signal, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: os._exit(130))\n"
        "pathlib.Path(os.environ['SAID'], 'runs').touch()\n"
        "time.sleep(50)\n"
    )
    process = job.start("run", "digits", SEARCH=search)
    while not (job.said / "runs").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 130


@pytest.mark.parametrize(
    ("changed", "arguments", "said"),
    [
        ({}, ("run", "digits"), "no token in {token}; create one: ray get-auth-token --generate"),
        ({"RAY_AUTH_TOKEN": "0" * 64}, (), "give the arguments of ticket-search"),
        ({"RAY_AUTH_TOKEN": "0" * 64, "SLURM_JOB_ID": None}, ("run", "digits"), "start it with sbatch"),
        ({"RAY_AUTH_TOKEN": "0" * 64, "PATH": "/usr/bin:/bin"}, ("run", "digits"), "ray is not on the path"),
    ],
)
def test_on_slurm_a_missing_requirement_is_one_message(job, changed, arguments, said):
    job.token.unlink()
    code, errors = job.run(*arguments, **changed)
    assert code == 2
    assert said.format(token=job.token) in errors
    assert len(errors.splitlines()) == 1
    assert not (job.said / "srun").exists()
