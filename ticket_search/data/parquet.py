"""Read images from Parquet files in the layout of Hugging Face image data sets."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from ticket_search.errors import DataError, shortened

LAYOUT = (
    "files named train*.parquet and test*.parquet, or files in folders named train* and test*, "
    "with the columns image: struct{bytes, path} and label: integer"
)
_CHANNELS = {"L": 1, "RGB": 3}


def find_shards(root: Path) -> dict[str, list[Path]]:
    """Return the Parquet files below a folder by split; the files of each split are sorted by path.

    A file belongs to ``train``, ``test`` or ``valid`` if its name begins with that word. If its name begins with none
    of them, its parent folder's name decides in the same way. The ``valid`` files are the ``test`` split if there are
    no ``test`` files. All other files are ignored.
    """
    shards: dict[str, list[Path]] = {"train": [], "test": [], "valid": []}
    for path in sorted(root.rglob("*.parquet")):
        names = [path.name, *([path.parent.name] if path.parent != root else [])]
        split = next((split for name in names for split in shards if name.startswith(split)), None)
        if split is not None:
            shards[split].append(path)
    return {"train": shards["train"], "test": shards["test"] or shards["valid"]}


def read_shards(paths: Sequence[Path]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read the images ``[n, c, h, w]`` and labels ``[n]`` of one split.

    Raises:
        DataError: a file or image cannot be read, or the images differ in size or mode.
    """
    tables = [_read_table(path) for path in paths]
    labels = np.concatenate([np.asarray(table["label"], dtype=np.int64) for table in tables])
    rows = [(path, row, data) for path, table in zip(paths, tables, strict=True) for row, data in _images(table)]
    if not rows:
        raise DataError(f"{str(paths[0])!r} and the other files of its split contain no rows")
    first = _decode(*rows[0])
    width, height = first.size
    images = np.empty((len(rows), _CHANNELS[first.mode], height, width), np.uint8)
    target = images.transpose(0, 2, 3, 1)
    # Threads would make this slower, because decoding such small images holds the GIL most of the time.
    for i, (path, row, data) in enumerate(rows):
        image = _decode(path, row, data)
        if (image.size, image.mode) != (first.size, first.mode):
            raise DataError(
                f"{path}, row {row}: the image is {_describe(image)}, but the first image of its split is "
                f"{_describe(first)}; give all images the same size and mode"
            )
        target[i] = np.asarray(image).reshape(target.shape[1:])
    return images, labels


def _read_table(path: Path) -> Any:
    try:
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
        fits = {"image", "label"} <= set(schema.names) and pa.types.is_integer(schema.field("label").type)
        fits = fits and _holds_bytes(schema.field("image").type)
        if not fits:
            columns = shortened(", ".join(f"{field.name}: {field.type}" for field in schema), 300)
            raise DataError(
                f"{str(path)!r} has the columns {columns}; it needs image: struct{{bytes, path}} and label: integer"
            )
        table = file.read(columns=["image.bytes", "label"])
    except (OSError, pa.ArrowException, ValueError, KeyError) as error:  # e.g. column names that are not unique
        raise DataError(f"cannot read {str(path)!r}: {error}") from error
    if table["label"].null_count:
        raise DataError(f"{str(path)!r}: {table['label'].null_count} of its labels are null; every image needs a label")
    return table


def _holds_bytes(kind: pa.DataType) -> bool:
    """Return whether a column's type is a struct with a binary field named ``bytes``."""
    at = kind.get_field_index("bytes") if pa.types.is_struct(kind) else -1
    return at >= 0 and (pa.types.is_binary(kind.field(at).type) or pa.types.is_large_binary(kind.field(at).type))


def _images(table: Any) -> list[tuple[int, bytes | None]]:
    return list(enumerate(value and value["bytes"] for value in table["image"].to_pylist()))


def _decode(path: Path, row: int, data: bytes | None) -> Image.Image:
    if data is None:
        raise DataError(f"{path}, row {row}: image.bytes is null; the image itself must be in the file")
    try:
        image: Image.Image = Image.open(BytesIO(data))
        image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}, row {row}: the image cannot be decoded: {error}") from error
    if image.mode not in _CHANNELS:
        raise DataError(
            f"{path}, row {row}: the image has mode {image.mode!r}; convert all images to L (grayscale) or RGB"
        )
    return image


def _describe(image: Image.Image) -> str:
    return f"{image.width}x{image.height} {image.mode}"
