"""Shares data among the processes of one machine by writing them to a file that each process maps into memory."""

import mmap
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class MappedData:
    """A handle to data in two files. Any process on this machine can call it to read the data.

    Attributes:
        path: the path of a pickle file that contains everything but the arrays.
        sizes: the size in bytes of each array in the second file, which has the same path with the suffix ``.arrays``.
    """

    path: str
    sizes: tuple[int, ...]

    def __call__(self) -> Mapping[Any, Any]:
        """Return the data. Arrays are read-only views of memory that all processes share."""
        return _mapped(self)


def map_data(data: Mapping[Any, Any], path: Path) -> MappedData:
    """Write data to files that the processes of this machine can map.

    Args:
        data: the data. All processes share the numpy arrays; each process gets its own copy of everything else.
        path: the path of the pickle file to write; the arrays go to a second file, with the suffix ``.arrays``.
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
