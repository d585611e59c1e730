"""Chunks, the files of a table: ``part-00000.parquet``, ``part-00001.parquet``, ... with a checksum in every page."""

import re
from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq

_NAME = re.compile(r"part-\d{5,}\.parquet")


def chunk_name(number: int) -> str:
    """Return the file name of a table's chunk, numbered from 0."""
    return f"part-{number:05}.parquet"


def is_chunk(name: str) -> bool:
    """Return whether a file in a table's folder is a chunk, rather than a user's copy or note, or ``.DS_Store``."""
    return _NAME.fullmatch(name) is not None


def write_chunk(table: pa.Table) -> bytes:
    """Return the bytes of a chunk's file."""
    sink = pa.BufferOutputStream()
    # Without page checksums, a flipped byte in a number would go unnoticed. They cost little: 100,000 rows of `levels`
    # (19 MB) are written in 0.30 s instead of 0.28 s and read in 0.18 s instead of 0.15 s (best of 7).
    pq.write_table(table, sink, write_page_checksum=True)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def read_schema(data: bytes) -> pa.Schema:
    """Read the schema of a chunk.

    Raises:
        ValueError: the file is damaged; the message says how, in one line.
    """
    return _open(data).schema_arrow


def read_chunk(data: bytes, columns: list[str] | None = None) -> pa.Table:
    """Read the rows of a chunk, or only some of their columns.

    Raises:
        ValueError: the file is damaged; the message says how, in one line.
    """
    file = _open(data)
    try:
        return file.read(columns)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(_one_line(error)) from None


def _open(data: bytes) -> pq.ParquetFile:
    if not data:
        raise ValueError("it is empty")
    try:
        return pq.ParquetFile(BytesIO(data), page_checksum_verification=True)
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: a name with a flipped byte is not UTF-8
        raise ValueError(_one_line(error)) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
