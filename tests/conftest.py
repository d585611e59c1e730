import functools
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest
from by_hand import run_by_hand

from ticket_search.config.base import validate
from ticket_search.config.search import SearchSpec
from ticket_search.config.space import assign, dotted
from ticket_search.config.trajectory import DatasetSpec, TrajectorySpec
from ticket_search.storage.folder import open_folder

_HERE = Path(__file__).parent
_ENGINES = _HERE / "engines"
#: Test files with tests that run with every engine.
_ALL_ENGINES = {"test_engines.py", "test_lanes_of_workers.py"}
#: Test files that start their own Ray instances.
_OWN_RAY = {"test_connection.py", "test_lost_node.py"}
_TRAJECTORY = {
    "dataset": {"name": "digits", "validation": 300},
    "model": {"name": "lenet_16"},
    "training": {
        "optimizer": {"name": "adam", "lr": 2e-3},
        "batch_size": 64,
        "iterations": 40,
        "evaluate_every": 20,
        "executor": "plain",  # saves each worker process the time to import numba
    },
    "pruning": {"max_levels": 2},
}


@pytest.hookimpl(optionalhook=True)  # the hook belongs to xdist, which may not be installed
def pytest_xdist_make_scheduler(config, log):
    """Run all tests that share a Ray instance on one worker, and keep the other tests of each file together.

    This way, only one shared Ray instance is started. The marker `xdist_group` cannot replace this hook: with pytest
    9.2, xdist 3.8 distributes the marked tests over all workers.
    """
    from xdist.scheduler import LoadFileScheduling

    class OneRay(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = config.rootpath / super()._split_scope(nodeid)
            test = nodeid.rpartition("::")[2].partition("[")[0]
            if file.name in _ALL_ENGINES and nodeid.endswith(("[inline]", "[processes]")):
                return "engines without Ray"
            if file.name in _OWN_RAY or (file.parent != _ENGINES and test not in _on_ray(file)):
                return str(file)
            return "ray"

    return OneRay(config, log)


@functools.cache
def _on_ray(file):
    """Return the names of a test file's functions that use `ray_address`, directly or through another fixture."""
    functions = re.findall(r"def (\w+)\(([^)]*)\)", file.read_text())
    found = {"ray_address"}
    while new := {name for name, arguments in functions if found & set(re.findall(r"\w+", arguments))} - found:
        found |= new
    return found


def _plain(changes):
    raw = validate(TrajectorySpec, {**_TRAJECTORY, "seed": 0}).model_dump(mode="json")
    for path, value in changes.items():
        assign(raw, dotted(path), value)
    return raw


@pytest.fixture(scope="session")
def trajectory():
    """A factory for small trajectories on the data set ``digits``: ``trajectory({"pruning_rate": 0.5}, seed=1)``."""
    return lambda changes=(), seed=0: validate(TrajectorySpec, _plain(dict(changes)) | {"seed": seed})


@pytest.fixture(scope="session")
def search():
    """A factory for small searches: ``search({"pruning_rate": [0.2]}, sampler="random")``.

    Additional keyword arguments, like ``sampler``, go into the section ``search``.
    """

    def make(space, seeds=(0, 1, 2), base=(), **settings):
        raw = _plain(dict(base))
        raw |= {"name": "x", "space": space, "seeds": list(seeds), "search": {"trials": 24, **settings}}
        del raw["seed"]
        return validate(SearchSpec, raw)

    return make


@pytest.fixture(scope="session")
def _finished_search(search, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("finished_search") / "run"
    space = {"pruning_rate": [0.3, 0.6], "rewind_iteration": [0, 20]}
    run_by_hand(search(space, seeds=(0, 1), sampler="grid", trials=None, early_stopping=None), run_dir)
    return run_dir


@pytest.fixture
def finished_search(_finished_search, tmp_path):
    """A copy of a finished search's run directory: 8 trajectories on the digits, each with levels 0, 1 and 2."""
    run_dir = Path(shutil.copytree(_finished_search, tmp_path / "finished_search"))
    (note,) = (run_dir / "store/searches").iterdir()  # this note names the run directory that uses the store
    note.write_text(note.read_text().replace(str(_finished_search), str(run_dir)))
    return run_dir


@pytest.fixture(scope="session")
def digits():
    """The classification task on the digits: 1,137 training, 300 validation and 360 test images of 8x8 pixels."""
    import torch

    from ticket_search.data.dataset import load_dataset
    from ticket_search.tasks.images import ImageTask

    torch.set_num_threads(1)
    return ImageTask(load_dataset(DatasetSpec(name="digits", validation=300), Path()))


@pytest.fixture
def trainings(monkeypatch):
    """A record of all training runs: their `levels`, their `inputs` (copies of the initial weights) and `outputs`."""
    from ticket_search.training.executors import plain

    seen = SimpleNamespace(levels=[], inputs=[], outputs=[])
    train = plain.train

    def recorded(request):
        seen.levels.append(request.level)
        seen.inputs.append({name: value.clone() for name, value in request.level.weights.items()})
        seen.outputs.append(train(request))
        return seen.outputs[-1]

    monkeypatch.setattr(plain, "train", recorded)
    return seen


@pytest.fixture(scope="session")
def ray_address():
    """The address of a Ray cluster that is shared by all tests and by the searches that they run in other processes."""
    import logging

    from ticket_search.engines.ray.connection import ray

    # Start Ray like `connect(None)`, but make it reachable at this machine's network address, as in a cluster.
    ray.init(
        "local",
        include_dashboard=False,
        object_store_memory=256 * 1024**2,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="session", autouse=True)
def no_network():
    """Fail any test that tries to connect to another machine."""
    import socket

    connect = socket.socket.connect

    def local_only(self, address):
        host = address[0] if isinstance(address, tuple) else "127.0.0.1"
        assert str(host).startswith(("127.", "::1", "localhost")), f"a test tried to reach {address}"
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", local_only)
        yield


@pytest.fixture(scope="session", autouse=True)
def credentials():
    """Set credentials for the tests' S3 server before Ray starts, because Ray's workers inherit the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield


class S3Server:
    """An S3 server in a subprocess. It keeps its contents when it is killed and restarted."""

    def __init__(self, journal):
        self._journal = journal
        self._process = None
        self.port = 0

    def start(self):
        script = Path(__file__).with_name("s3_server.py")
        command = [sys.executable, str(script), str(self.port), str(self._journal)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.port = int(self._process.stdout.readline())

    def kill(self):
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()

    def location(self, path):
        return f"s3://tests/{path}?endpoint_override=http://127.0.0.1:{self.port}"


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    """An S3 server on loopback with a bucket named ``tests``."""
    server = S3Server(tmp_path_factory.mktemp("s3") / "journal")
    server.start()
    bucket = urllib.request.Request(f"http://127.0.0.1:{server.port}/tests", method="PUT")
    urllib.request.urlopen(bucket).close()
    yield server
    server.kill()


@pytest.fixture(params=["disk", "s3"])
def folder(request, tmp_path):
    """An empty folder. A test that uses it runs twice: with a folder on disk and with a folder in object storage."""
    if request.param == "disk":
        return open_folder(tmp_path / "folder")
    return open_folder(request.getfixturevalue("s3").location(uuid4().hex))


@pytest.fixture
def small_disk(tmp_path):
    """An empty disk of 400 kB."""
    disk = tmp_path / "small_disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)
