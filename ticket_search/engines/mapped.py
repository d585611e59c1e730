"""Data that the processes of one machine share: written to a file once, and mapped into the memory of each."""

import mmap
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class MappedData:
    """Data in two files; call it, in any process of this machine, to read them.

    Attributes:
        path: of the file with everything but arrays, pickled.
        sizes: bytes of each array in the file beside it, which has the suffix ``.arrays``.
    """

    path: str
    sizes: tuple[int, ...]

    def __call__(self) -> Mapping[Any, Any]:
        """The data. Arrays are read-only views of memory that all processes have in common."""
        return _mapped(self)


def map_data(data: Mapping[Any, Any], path: Path) -> MappedData:
    """Write data where the processes of this machine can map them.

    Args:
        data: what is in numpy arrays is shared, the rest is copied.
        path: of the file to write.
    """
    buffers: list[pickle.PickleBuffer] = []
    path.write_bytes(pickle.dumps(dict(data), protocol=5, buffer_callback=buffers.append))
    sizes = []
    with path.with_suffix(".arrays").open("wb") as file:
        for buffer in buffers:
            sizes.append(file.write(buffer.raw()))
    return MappedData(path=str(path), sizes=tuple(sizes))


@lru_cache(maxsize=2)
def _mapped(data: MappedData) -> Mapping[Any, Any]:
    path = Path(data.path)
    arrays = memoryview(b"")
    if any(data.sizes):  # an empty file cannot be mapped
        with path.with_suffix(".arrays").open("rb") as file:
            arrays = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    buffers, start = [], 0
    for size in data.sizes:
        buffers.append(arrays[start : start + size])
        start += size
    found: Mapping[Any, Any] = pickle.loads(path.read_bytes(), buffers=buffers)  # noqa: S301 (written by `map_data`)
    return found
