from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ticket_search.config.trajectory import DatasetSpec
from ticket_search.data.arrays import read_arrays
from ticket_search.errors import DataError

SHARED = Path(__file__).parents[2].parent / "shared" / "datasets"
RGB = np.arange(5 * 2 * 3 * 3, dtype=np.uint8).reshape(5, 2, 3, 3)
SPEC = DatasetSpec(name="parquet", path="images", validation=1)


def png(array):
    buffer = BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, images, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"bytes": image if isinstance(image, bytes | None) else png(image), "path": None} for image in images]
    struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({"image": pa.array(rows, struct), "label": labels}), path)


def test_round_trip_of_shards(tmp_path):
    write(tmp_path / "images/data/train-00001-of-00002.parquet", RGB[2:4], [2, 3])
    write(tmp_path / "images/data/train-00000-of-00002.parquet", RGB[:2], [0, 1])
    write(tmp_path / "images/data/test-00000-of-00001.parquet", RGB[4:], [3])
    arrays = read_arrays(SPEC, tmp_path)
    assert arrays.train_images.tolist() == RGB[:4].transpose(0, 3, 1, 2).tolist()
    assert arrays.test_images.tolist() == RGB[4:].transpose(0, 3, 1, 2).tolist()
    assert (arrays.train_labels.tolist(), arrays.test_labels.tolist(), arrays.classes) == ([0, 1, 2, 3], [3], 4)


def test_splits_by_folder_grey_and_absolute(tmp_path):
    write(tmp_path / "train/0000.parquet", RGB[:2, :, :, 0], [0, 1])
    write(tmp_path / "validation/0000.parquet", RGB[2:4, :, :, 0], [1, 1])
    arrays = read_arrays(DatasetSpec(name="parquet", path=str(tmp_path), validation=1), Path("nowhere"))
    assert arrays.train_images.tolist() == RGB[:2, None, :, :, 0].tolist()
    assert arrays.test_labels.tolist() == [1, 1]


def test_a_test_file_takes_precedence_over_validation_and_other_files_are_ignored(tmp_path):
    write(tmp_path / "images/train.parquet", RGB[:2], [0, 1])
    write(tmp_path / "images/valid.parquet", RGB[:1], [0])
    write(tmp_path / "images/test.parquet", RGB[:1], [1])
    write(tmp_path / "images/extra.parquet", RGB[:1], [9])
    arrays = read_arrays(SPEC, tmp_path)
    assert (arrays.train_labels.tolist(), arrays.test_labels.tolist()) == ([0, 1], [1])


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"dataset.path: '.*images' is not a folder; give .*train\*.parquet"):
        read_arrays(SPEC, tmp_path)
    write(tmp_path / "images/train.parquet", RGB[:2], [0, 1])
    with pytest.raises(DataError, match="contains no test files"):
        read_arrays(SPEC, tmp_path)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (RGB[1, :1], r"train.parquet, row 1: the image is 3x1 RGB, but the first image of its split is 3x2 RGB"),
        (RGB[1, :, :, 0], r"row 1: the image is 3x2 L, but the first"),
        (np.zeros((2, 3, 4), np.uint8), "row 1: the image has mode 'RGBA'"),
        (b"no image", "row 1: the image cannot be decoded"),
        (png(RGB[1])[:-25], "row 1: the image cannot be decoded"),
        (None, "row 1: image.bytes is null"),
    ],
)
def test_an_image_unlike_the_others_is_refused(tmp_path, second, message):
    write(tmp_path / "images/train.parquet", [RGB[0], second], [0, 1])
    write(tmp_path / "images/test.parquet", RGB[:1], [0])
    with pytest.raises(DataError, match=message):
        read_arrays(SPEC, tmp_path)


def test_unsuitable_columns_are_refused(tmp_path):
    write(tmp_path / "images/test.parquet", RGB[:1], [0])
    write(tmp_path / "images/train.parquet", RGB[:1], ["cat"])
    with pytest.raises(DataError, match=r"has the columns image: struct<.*>, label: string; it needs image"):
        read_arrays(SPEC, tmp_path)
    write(tmp_path / "images/train.parquet", RGB[:2], [0, None])
    with pytest.raises(DataError, match="1 of its labels are null"):
        read_arrays(SPEC, tmp_path)
    write(tmp_path / "images/train.parquet", [], pa.array([], pa.int64()))
    with pytest.raises(DataError, match="contain no rows"):
        read_arrays(SPEC, tmp_path)
    (tmp_path / "images/train.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="cannot read"):
        read_arrays(SPEC, tmp_path)


@pytest.mark.skipif(not (SHARED / "cifar10-jpeg").is_dir(), reason="needs the shared CIFAR-10")
def test_the_real_cifar10():
    arrays = read_arrays(DatasetSpec(name="parquet", path="cifar10-jpeg", validation=1), SHARED)
    assert (arrays.train_images.shape, arrays.test_images.shape) == ((50000, 3, 32, 32), (10000, 3, 32, 32))
    assert np.bincount(arrays.train_labels).tolist() == [5000] * 10
