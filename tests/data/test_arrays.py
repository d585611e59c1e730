import dataclasses
import gzip
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ticket_search.config.trajectory import DATASETS, DatasetSpec
from ticket_search.data.arrays import READERS, label_notices, read_arrays
from ticket_search.data.idx import read_idx
from ticket_search.errors import DataError

SHARED = Path(__file__).parents[2].parent / "shared" / "datasets"
TRAIN = np.arange(3 * 2 * 2, dtype=np.uint8).reshape(3, 2, 2)
TEST = TRAIN[:2] + 100


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(folder, suffix="", labels=([0, 1, 2], [4, 0])):
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "train-images-idx3-ubyte": TRAIN,
        "train-labels-idx1-ubyte": np.array(labels[0], np.uint8),
        "t10k-images-idx3-ubyte": TEST,
        "t10k-labels-idx1-ubyte": np.array(labels[1], np.uint8),
    }
    for name, array in files.items():
        (folder / f"{name}{suffix}").write_bytes(gzip.compress(idx(array)) if suffix else idx(array))


def spec(name, **fields):
    return DatasetSpec(name=name, validation=fields.pop("validation", 1), **fields)


def test_every_name_has_a_reader():
    assert tuple(READERS) == DATASETS


def test_torch_is_not_loaded():
    script = "import sys, ticket_search.data; from pathlib import Path\n"
    script += "from ticket_search.config.trajectory import DatasetSpec\n"
    script += "ticket_search.data.read_arrays(DatasetSpec(name='digits', validation=1), Path('.'))\n"
    script += "assert not {'torch', 'torchvision'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_digits(tmp_path):
    digits = read_arrays(spec("digits"), tmp_path)
    assert (digits.train_images.shape, digits.test_images.shape) == ((1437, 1, 8, 8), (360, 1, 8, 8))
    assert (digits.train_images.dtype, digits.train_labels.dtype, digits.classes) == (np.uint8, np.int64, 10)
    assert (digits.train_images.min(), digits.train_images.max()) == (0, 240)
    assert np.bincount(digits.test_labels).tolist() == [31, 35, 39, 33, 44, 29, 40, 40, 28, 41]
    assert digits.fingerprint == "d225a7611b19e593462a48f9d74cb964"


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST/raw"), ("fashion_mnist", "FashionMNIST/raw"), ("mnist", ".")]
)
def test_idx(tmp_path, name, folder, suffix):
    write_idx(tmp_path / folder, suffix)
    arrays = read_arrays(spec(name), tmp_path)
    assert arrays.train_images.tolist() == TRAIN[:, None].tolist()
    assert arrays.test_images.tolist() == TEST[:, None].tolist()
    assert (arrays.train_labels.tolist(), arrays.test_labels.tolist(), arrays.classes) == ([0, 1, 2], [4, 0], 5)


def test_idx_that_is_broken(tmp_path):
    file = tmp_path / "x"
    file.write_bytes(idx(TRAIN)[:-1])
    with pytest.raises(DataError, match=r"has 11 bytes after its header instead of 12 \(shape \[3, 2, 2\]\)"):
        read_idx(file, 3)
    with pytest.raises(DataError, match="begins with '00000803'; it should begin with '00000801'"):
        read_idx(file, 1)
    file.write_bytes(b"")
    with pytest.raises(DataError, match="begins with ''"):
        read_idx(file, 1)
    cut = tmp_path / "x.gz"
    cut.write_bytes(gzip.compress(idx(TRAIN))[:-9])
    with pytest.raises(DataError, match="cannot read"):
        read_idx(cut, 3)


def test_missing_idx_files_are_named_with_their_folder_and_a_remedy(tmp_path):
    with pytest.raises(DataError) as error:
        read_arrays(spec("mnist"), tmp_path)
    for part in (f"'{tmp_path / 'MNIST/raw'}' nor '{tmp_path}'", "`--data-dir`", "`dataset.download: true`", "t10k-"):
        assert part in str(error.value)


def test_download_then_read(tmp_path, monkeypatch):
    datasets = pytest.importorskip("torchvision.datasets")

    def fetch(root, train, download):
        assert download
        write_idx(Path(root) / "MNIST/raw")

    monkeypatch.setattr(datasets, "MNIST", fetch)
    assert len(read_arrays(spec("mnist", download=True), tmp_path).train_images) == 3


def test_download_that_fails(tmp_path, monkeypatch):
    datasets = pytest.importorskip("torchvision.datasets")

    def fetch(root, train, download):
        raise OSError("no route to host")

    monkeypatch.setattr(datasets, "MNIST", fetch)
    with pytest.raises(DataError, match=r"'mnist' cannot be downloaded to .*no route to host"):
        read_arrays(spec("mnist", download=True), tmp_path)


def test_cifar10(tmp_path, monkeypatch):
    cifar = pytest.importorskip("torchvision.datasets.cifar")
    monkeypatch.setattr(cifar, "check_integrity", lambda *_: True)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rows = np.arange(3 * 1024, dtype=np.int64).astype(np.uint8)[None]
    files = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    for name, label in zip(files, [0, 9, 9, 9, 9, 9], strict=True):
        (folder / name).write_bytes(pickle.dumps({"data": rows, "labels": [label]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["a"]}))
    arrays = read_arrays(spec("cifar10"), tmp_path)
    assert (arrays.train_images.shape, arrays.test_images.shape, arrays.classes) == ((5, 3, 32, 32), (1, 3, 32, 32), 10)
    assert arrays.test_images.tolist() == rows.reshape(1, 3, 32, 32).tolist()


def test_absent_cifar10(tmp_path):
    pytest.importorskip("torchvision")
    with pytest.raises(DataError, match=r"'cifar10' not found in .*`--data-dir`.*`dataset.download: true`"):
        read_arrays(spec("cifar10"), tmp_path)


@pytest.mark.parametrize("validation", [3, 4])
def test_validation_must_leave_training_images(tmp_path, validation):
    write_idx(tmp_path)
    with pytest.raises(DataError, match=f"dataset.validation: {validation} leaves none of the 3 training images"):
        read_arrays(spec("mnist", validation=validation), tmp_path)


def test_fingerprint_sees_values_shapes_and_types(tmp_path):
    write_idx(tmp_path)
    arrays = read_arrays(spec("mnist"), tmp_path)
    changed = arrays.train_images.copy()
    changed[0, 0, 0, 0] += 1
    others = [
        dataclasses.replace(arrays, train_images=changed),
        dataclasses.replace(arrays, train_images=arrays.train_images.reshape(3, 1, 1, 4)),
        dataclasses.replace(arrays, train_images=arrays.train_images.view(np.int8)),
        dataclasses.replace(arrays, test_labels=arrays.test_labels[::-1]),
        dataclasses.replace(arrays, source="x"),
    ]
    assert len({a.fingerprint for a in [arrays, *others]}) == 6
    assert read_arrays(spec("mnist"), tmp_path).fingerprint == arrays.fingerprint


class TestLabels:
    """Tests for the notices about labels, using three training images and two test images in MNIST's file format."""

    def notices(self, folder, train, test, name="mnist"):
        write_idx(folder, labels=(train, test))
        return label_notices(spec(name), read_arrays(spec(name), folder))

    def test_valid_labels_give_no_notice(self, tmp_path):
        assert self.notices(tmp_path, [0, 1, 2], [2, 0]) == ()

    def test_labels_missing_in_training_give_a_notice(self, tmp_path):
        (notice,) = self.notices(tmp_path, [0, 1, 2], [3, 0])
        assert notice == (
            "dataset 'mnist': 1 of its 2 test images have labels that no training image has (3) and will count as "
            "wrong; move some of them into the training set, or drop them"
        )

    def test_labels_with_gaps_or_beyond_mnists_ten_classes_give_notices(self, tmp_path):
        gaps, beyond = self.notices(tmp_path, [0, 1, 200], [0, 1])
        assert "the network has 201 outputs, but 198 of these classes have no image; number the classes" in gaps
        assert "the largest label is 200, but mnist has 10 classes; download the files again, unless" in beyond

    @pytest.mark.parametrize(
        ("train", "test", "message"),
        [
            ([7, 7, 7], [7, 7], "all 3 training labels are 7; give training images of at least two classes"),
            ([0, 1, 2], [4, 3], r"no test label \(3, 4\) occurs among the training labels \(0, 1, 2\); give"),
        ],
    )
    def test_unusable_labels_are_refused(self, tmp_path, train, test, message):
        with pytest.raises(DataError, match=f"dataset 'mnist': {message}"):
            self.notices(tmp_path, train, test)


@pytest.mark.skipif(not (SHARED / "MNIST").is_dir(), reason="needs the shared MNIST")
def test_the_real_mnist():
    mnist = read_arrays(spec("mnist"), SHARED)
    assert (mnist.train_images.shape, mnist.test_images.shape) == ((60000, 1, 28, 28), (10000, 1, 28, 28))
    assert mnist.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
