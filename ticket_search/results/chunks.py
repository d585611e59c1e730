"""Reads and writes chunks, the files that make up a table. Each chunk contains its own checksum."""

import hashlib
import re
from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq

_NAME = re.compile(r"part-\d{5,}\.parquet")
#: The marker that precedes the hash of the whole file in a chunk's footer. The hash is computed with zeros in place of
#: the hash itself. Unlike Parquet's page checksums, it also covers the footer.
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
    """Return the content of a chunk that contains the rows of a table."""
    sink = pa.BufferOutputStream()
    # Without checksums, a flipped byte in a number would go unnoticed. Other programs that read Parquet files do not
    # know this module's hash, but they can check the page checksums.
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
    """Read all columns of a chunk, or only the given ones.

    Raises:
        ValueError: the file is damaged; the message says how, in one line.
    """
    file = _open(data)
    try:
        return file.read(columns)
    except Exception as error:  # chunks of earlier versions have no hash, so reading a damaged one may raise any error
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
    """Check the content of a chunk against its checksum. Chunks written by earlier versions have no checksum.

    Raises:
        ValueError: the checksum does not match the content.
    """
    mark = data.rfind(_MARK)
    start = mark + len(_MARK)
    if mark >= 0 and data[start : start + len(_ZEROS)] != _hash(data, start):
        raise ValueError("its checksum does not match its content")


def _hash(data: bytes, start: int) -> bytes:
    """Return the hash of a chunk, computed with zeros in place of the hash that is stored at `start`."""
    parts = memoryview(data)
    found = hashlib.sha256(parts[:start])
    found.update(_ZEROS)
    found.update(parts[start + len(_ZEROS) :])
    return found.hexdigest().encode()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
