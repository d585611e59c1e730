"""A data set is read once, by the process that starts the search. The workers of a node share it in memory."""

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from by_hand import run_by_hand

from ticket_search.config.trajectory import DatasetSpec
from ticket_search.data import read_arrays
from ticket_search.engines.engine import NAMES
from ticket_search.engines.mapped import map_data
from ticket_search.errors import DataError
from ticket_search.launch import preflight
from ticket_search.launch.run import run_search
from ticket_search.results.reading import load_results

DATA = """
import os
from pathlib import Path
import numpy as np

def load():
    with Path(__file__).with_name("reads").open("a") as file:
        file.write(f"{os.getpid()}\\n")
    draw = np.random.RandomState(0)
    return {split: (draw.randint(0, 256, (n, 40, 40), np.uint8), draw.randint(0, 3, n)) for split, n in SPLITS.items()}

SPLITS = {"train": 3000, "test": 100}
"""


@pytest.fixture
def user_data(tmp_path, monkeypatch):
    (tmp_path / "counted_data.py").write_text(DATA)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "reads"
    sys.modules.pop("counted_data", None)


def test_workers_read_the_memory_of_their_node(ray_address, user_data):
    from ticket_search.engines.ray.connection import ray, share

    def find_the_images(spec, data):
        """Return the memory maps with a worker's images, the fingerprint, and the sum of all training pixels."""
        import ticket_search.engines.worker as worker

        dataset = worker._task("classification", spec, data[0], "there is no such folder", "cpu").data
        mapped = []
        for images in (dataset.train.images, dataset.test.images):
            for line in Path("/proc/self/maps").read_text().splitlines():
                fields = line.split(maxsplit=5)
                start, end = (int(number, 16) for number in fields[0].split("-"))
                if start <= images.data_ptr() < end:
                    mapped.append((fields[1], fields[-1]))
        return mapped, dataset.fingerprint, dataset.train.images.double().sum().item()

    spec = DatasetSpec(name="counted_data:load", validation=500)
    arrays = read_arrays(spec, None)
    data = share({spec.source: arrays})
    remote = ray.remote(find_the_images)
    for mapped, fingerprint, total in ray.get([remote.remote(spec, [data]) for _ in range(2)]):
        assert len(mapped) == 2
        assert all(rights[3] == "s" and "plasma" in name for rights, name in mapped), mapped
        assert (fingerprint, total) == (arrays.fingerprint, arrays.train_images.sum(dtype="float64"))


@pytest.mark.parametrize("engine", NAMES)
def test_a_search_reads_a_data_set_once(engine, ray_address, user_data, tmp_path, search):
    spec = search(
        {"pruning_rate": [0.3, 0.6]},
        seeds=[0, 1],
        sampler="grid",
        trials=None,
        base={"dataset.name": "counted_data:load"},
    )
    run_search(spec, tmp_path / "run", engine=engine)
    assert len(user_data.read_text().splitlines()) == 1
    assert list(load_results(tmp_path / "run").trajectories["status"]) == ["completed"] * 4


def test_results_equal_those_of_a_data_set_read_by_the_process_itself(tmp_path, search):
    spec = search({"pruning_rate": [0.5]}, seeds=[0], sampler="grid", trials=None)
    run_search(spec, tmp_path / "shared", engine="inline")
    run_by_hand(spec, tmp_path / "read")
    shared, read = (load_results(tmp_path / name).levels.drop(columns="train_seconds") for name in ("shared", "read"))
    assert shared.to_dict() == read.to_dict()


def test_processes_map_a_data_set_from_one_file(tmp_path):
    """The arrays in the workers are read-only views of the file."""
    images = np.arange(12, dtype=np.float32).reshape(3, 4)
    data = {"numbers": {"images": images, "empty": np.empty(0), "labels": np.arange(3)}, "name": "three"}
    mapped = pickle.loads(pickle.dumps(map_data(data, tmp_path / "data")))
    assert (tmp_path / "data.arrays").stat().st_size == images.nbytes + 3 * 8
    found = mapped()
    assert (found["name"], found["numbers"]["images"].tolist()) == ("three", images.tolist())
    assert found["numbers"]["empty"].shape == (0,)
    assert not found["numbers"]["images"].flags.writeable
    assert mapped() is found
    with (tmp_path / "data.arrays").open("r+b") as file:
        file.write(np.float32(7).tobytes())
    assert found["numbers"]["images"][0, 0] == 7


def test_a_missing_data_set_is_reported_with_its_machine(search, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "head7")
    spec = search({"pruning_rate": [0.5]}, base={"dataset.name": "mnist"})
    missed = "dataset 'mnist' not found: neither '"
    for local, start in ((True, missed), (False, "on head7, which sends the data to every node")):
        with pytest.raises(DataError) as missing:
            preflight.check(spec, local=local)
        assert str(missing.value).startswith(start)
        assert "MNIST/raw' nor" in str(missing.value)
