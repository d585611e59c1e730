"""Reads and writes chunks, the files that make up a table. Each contains its own checksum."""

import hashlib
import re
from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq

_NAME = re.compile(r"part-\d{5,}\.parquet")
#: The marker before the hash of the whole file, which is computed with zeros in place of the hash itself. Both are
#: in the file's footer, which Parquet's page checksums do not cover.
_MARK = b"ticket_search.sha256="
_ZEROS = b"0" * 64
_KEY = b"ticket_search.checksum"


def chunk_name(number: int) -> str:
    """Return the file name of a chunk, e.g. ``part-00000.parquet`` for number 0."""
    return f"part-{number:05}.parquet"


def is_chunk(name: str) -> bool:
    """Return whether a file in a table's folder is a chunk, rather than, say, a user's copy or ``.DS_Store``."""
    return _NAME.fullmatch(name) is not None


def write_chunk(table: pa.Table) -> bytes:
    """Return a table in the format of a chunk."""
    sink = pa.BufferOutputStream()
    # Without checksums, a flipped byte in a number would go unnoticed. The page checksums are for other
    # programs that read Parquet files.
    metadata = table.schema.metadata or {}
    schema = table.schema.with_metadata({key: value for key, value in metadata.items() if key != _KEY})
    with pq.ParquetWriter(sink, schema, write_page_checksum=True) as writer:
        writer.write_table(table.replace_schema_metadata(schema.metadata))
        writer.add_key_value_metadata({_KEY: _MARK + _ZEROS})
    data: bytes = sink.getvalue().to_pybytes()
    start = data.rindex(_MARK) + len(_MARK)
    return b"".join((data[:start], _hash(data, start), data[start + len(_ZEROS) :]))


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
    except Exception as error:  # earlier versions wrote no checksum, so reading a damaged file may raise any error
        raise ValueError(_one_line(error)) from None


def _open(data: bytes) -> pq.ParquetFile:
    if not data:
        raise ValueError("it is empty")
    _check(data)
    try:
        return pq.ParquetFile(BytesIO(data), page_checksum_verification=True)
    except Exception as error:  # see `read_chunk`
        raise ValueError(_one_line(error)) from None


def _check(data: bytes) -> None:
    """Compare a chunk with its checksum. Chunks of earlier versions have none.

    Raises:
        ValueError: they differ.
    """
    mark = data.rfind(_MARK)
    start = mark + len(_MARK)
    if mark >= 0 and data[start : start + len(_ZEROS)] != _hash(data, start):
        raise ValueError("its checksum does not match its content")


def _hash(data: bytes, start: int) -> bytes:
    """Return the hash of a chunk that contains its own hash at `start`."""
    parts = memoryview(data)
    found = hashlib.sha256(parts[:start])
    found.update(_ZEROS)
    found.update(parts[start + len(_ZEROS) :])
    return found.hexdigest().encode()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
