"""Read the IDX files of MNIST and Fashion-MNIST."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ticket_search.errors import DataError

#: (file name, number of dimensions) of the training images and labels, then of the test images and labels.
FILES = (
    ("train-images-idx3-ubyte", 3),
    ("train-labels-idx1-ubyte", 1),
    ("t10k-images-idx3-ubyte", 3),
    ("t10k-labels-idx1-ubyte", 1),
)


def find_idx(folder: Path) -> list[Path] | None:
    """Return the four files in a folder, each plain or gzipped, in the order of `FILES`; None if any is missing."""
    found = [next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None) for name, _ in FILES]
    paths = [path for path in found if path is not None]
    return paths if len(paths) == len(FILES) else None


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read one IDX file of unsigned bytes, gzipped if its name ends in ``.gz``.

    Raises:
        DataError: the file is unreadable, has a different magic number, or is not as long as its header says.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            raw = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {str(path)!r}: {error}") from error
    magic, start = bytes([0, 0, 8, dimensions]), 4 + 4 * dimensions
    if raw[:4] == magic and len(raw) < start:
        raise DataError(f"{str(path)!r} ends within its header, after {len(raw)} bytes; download it again")
    if raw[:4] != magic:
        raise DataError(f"{str(path)!r} begins with {raw[:4].hex()!r}; it should begin with {magic.hex()!r}")
    shape = struct.unpack(f">{dimensions}I", raw[4:start])
    if len(raw) != start + math.prod(shape):
        raise DataError(
            f"{str(path)!r} has {len(raw) - start} bytes after its header instead of {math.prod(shape)} "
            f"(shape {list(shape)}); download it again"
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)
