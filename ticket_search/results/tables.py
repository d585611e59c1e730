"""Writes the tables so that ``pd.read_parquet(folder)`` works at any moment and never returns a row twice.

A table is a folder of chunks, ``part-00000.parquet``, ``part-00001.parquet``, ...; all but the last are full. A chunk
is always replaced as a whole, under the same name, and a row never moves to another chunk. This keeps the number of
files small without a compaction that might be interrupted. Only the driver of the search writes tables.
"""

import json
import sys
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from ticket_search.config.space import Domain
from ticket_search.errors import RunDirectoryError
from ticket_search.results.chunks import chunk_name, is_chunk, read_chunk, read_schema, write_chunk
from ticket_search.results.schema import (
    FIRST_VERSION,
    KEYS,
    check_version,
    decode,
    encode,
    is_json,
    later_columns,
    schemas,
    upgraded,
    version_of,
)
from ticket_search.storage.folder import Location, open_folder

_LEVEL = ("trajectory_id", "level")
#: The number of rows in a full chunk. Every flush rewrites the last chunk, so tables with wide rows have short chunks.
_CAPACITY = {"levels": 10_000, "trajectories": 10_000}
_CAPACITY_OF_OTHERS = 50_000
#: A marker file, which exists until the rows of damaged or missing chunks have been rebuilt.
REBUILD_FILE = "rebuild.json"


class Table:
    """The only writer of a table. New rows stay in memory until `flush`; full chunks are not kept in memory.

    Args:
        folder: the folder of the chunks, local or in object storage; created if missing.
        schema: the schema of the rows.
        key: the columns that identify a row (for `put`), or a group of rows written together (for `put_group`).
        name: the table's name in `columns.table_columns`, needed to upgrade a table of an earlier version.
        capacity: the number of rows in a full chunk. A group is never split, so a chunk may have more.
        may_be_absent: whether a folder without chunks is a new table, rather than one whose chunks were removed.
        on_damage: called with a notice before a damaged or missing chunk is replaced by an empty one.

    Attributes:
        version: the lowest schema version among the chunks when the table was opened; None if there were no chunks.

    Raises:
        RunDirectoryError: the folder contains a table of a newer version or with different columns, or most of its
            chunks are missing.
        StorageError: the folder cannot be read or written.
    """

    def __init__(
        self,
        folder: Location,
        schema: pa.Schema,
        key: tuple[str, ...],
        *,
        name: str | None = None,
        capacity: int = 50_000,
        may_be_absent: bool = True,
        on_damage: Callable[[str], None] = lambda notice: None,
    ) -> None:
        self._folder, self._schema, self._key, self._capacity = open_folder(folder), schema, key, capacity
        self._name = name
        self._on_damage = on_damage
        self._names = set(schema.names)
        self._json = [field for field in schema if is_json(field)]
        self._starts = [0]  # for each chunk, the index of its first row in the table
        self._length = 0
        self._places: dict[tuple[Any, ...], int] = {}  # for each key, the index of its first row in the table
        self._pending: dict[int, Mapping[str, Any]] = {}
        # The number and the rows of the last chunk on disk. New rows are added to this chunk until it is full.
        self._last = (0, schema.empty_table())
        self.version: int | None = None
        self._open(may_be_absent)

    def put(self, row: Mapping[str, Any]) -> None:
        """Insert a row, or replace the row with the same key. Missing columns are null.

        Raises:
            KeyError: a column of the key is missing.
            ValueError: the row has a column that the table does not have.
        """
        key, row = self._key_of(row), self._encoded(row)
        if key in self._places:
            self._pending[self._places[key]] = row
        else:
            self._append(key, [row])

    def put_group(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Insert a group of rows that share one key. Do nothing if the table already has rows with that key.

        Raises:
            KeyError: a column of the key is missing.
            ValueError: the rows have different keys, or a column that the table does not have.
        """
        keys = {self._key_of(row) for row in rows}
        if len(keys) > 1:
            raise ValueError(f"all rows of a group must have the same {self._key}, not {sorted(keys)}")
        for key in keys - self._places.keys():
            self._append(key, [self._encoded(row) for row in rows])

    def flush(self) -> None:
        """Write the rows added since the last flush. If this fails, the next flush tries again."""
        for chunk, places in groupby(sorted(self._pending), key=self._chunk):
            self._write(chunk, list(places))
        self._pending.clear()

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """Flush the table, and yield all rows in order of insertion, with all columns or only the given ones.

        Only one chunk is in memory at a time.
        """
        self.flush()
        encoded = [field for field in self._json if columns is None or field.name in columns]
        for chunk in range(len(self._starts)):
            for row in self._read(chunk, None if columns is None else list(columns)).to_pylist():
                yield row | {field.name: decode(field, row[field.name]) for field in encoded}

    def __contains__(self, key: tuple[Any, ...]) -> bool:
        return key in self._places

    def _open(self, may_be_absent: bool) -> None:
        self._folder.sweep()
        names = {file.name for file in self._folder.files() if is_chunk(file.name)}
        chunks = 1 + max((int(name[5:-8]) for name in names), default=-1)
        if chunks > 2 * len(names):
            raise RunDirectoryError(f"{self._folder} is damaged: of {chunks} chunks, only {sorted(names)} are left")
        if not chunks:
            if not may_be_absent:
                self._on_damage(f"{self._folder} is missing; its rows will be rebuilt from the level store")
            self._write(0, [])
            return
        versions = []
        for chunk in range(chunks):
            found = self._mended(chunk)
            versions.append(version_of(found.schema))
            if chunk:
                self._starts.append(self._length)
            self._last = (chunk, self._upgraded(found, self._folder.place(chunk_name(chunk))))
            self._index(self._last[1].select(list(self._key)))
        self.version = min(versions)
        # Upgrade the first chunk last, because pandas expects all chunks to have the columns of the first chunk.
        for chunk in reversed(range(chunks)):
            if versions[chunk] < version_of(self._schema):
                self._save(chunk, self._read(chunk))

    def _mended(self, chunk: int) -> pa.Table:
        """Return a chunk. If it is damaged or missing, replace it with an empty chunk, and keep the damaged file."""
        name = chunk_name(chunk)
        path, data = self._folder.place(name), self._folder.read(name)
        try:
            if data is not None:
                return read_chunk(data)
            self._on_damage(f"{path} is missing; its rows will be rebuilt from the level store")
        except ValueError as error:
            # pandas and pyarrow skip files whose names start with an underscore.
            aside = f"_{name}.{time.time_ns()}.damaged"
            self._on_damage(
                f"{path} is damaged ({error}); it is kept as {aside}, and its rows will be rebuilt from the level store"
            )
            self._folder.write(aside, data or b"")
        empty = self._schema.empty_table()
        self._save(chunk, empty)
        return empty

    def _index(self, keys: pa.Table) -> None:
        """Add the keys of the next chunk to the index.

        The index needs only the first row of each group, because the rows of a group are adjacent.
        """
        places = pa.table({**dict(zip(self._key, keys.columns, strict=True)), "": np.arange(len(keys)) + self._length})
        firsts = places.group_by(list(self._key), use_threads=False).aggregate([("", "min")])
        columns = [firsts.column(name).to_pylist() for name in self._key]
        self._places.update(
            zip(map(_interned, zip(*columns, strict=True)), firsts.column("_min").to_pylist(), strict=True)
        )
        self._length += len(keys)

    def _upgraded(self, table: pa.Table, path: str) -> pa.Table:
        """Convert a chunk to the current schema; chunks of earlier versions lack some columns."""
        check_version(table.schema, path)
        later = later_columns(self._name, version_of(table.schema)) if self._name else []
        try:
            return upgraded(table, self._schema, later)
        except ValueError as error:
            raise RunDirectoryError(
                f"{path} does not have the columns of this search; they differ in {error}"
            ) from None

    def _key_of(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        return _interned(tuple(row[name] for name in self._key))

    def _encoded(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        if unknown := row.keys() - self._names:
            raise ValueError(f"{self._folder} has no column {sorted(unknown)}; its columns: {self._schema.names}")
        return {**row, **{field.name: encode(field, row.get(field.name)) for field in self._json}}

    def _append(self, key: tuple[Any, ...], rows: Sequence[Mapping[str, Any]]) -> None:
        if self._length - self._starts[-1] >= self._capacity:
            self._starts.append(self._length)
        self._places[key] = self._length
        self._pending.update(enumerate(rows, self._length))
        self._length += len(rows)

    def _chunk(self, place: int) -> int:
        return bisect_right(self._starts, place) - 1

    def _write(self, chunk: int, places: Sequence[int]) -> None:
        """Replace or extend the rows of a chunk with the pending rows at `places` (ascending), and write the chunk."""
        last, grown = self._last
        old = grown if chunk == last else self._read(chunk) if chunk < last else self._schema.empty_table()
        new = pa.Table.from_pylist([self._pending[place] for place in places], schema=self._schema)
        at = np.asarray(places, dtype=np.int64) - self._starts[chunk]
        order = np.arange(max(len(old), at.max(initial=-1) + 1))
        order[at] = len(old) + np.arange(len(new))
        table = pa.concat_tables([old, new]).take(order)
        self._save(chunk, table)
        if chunk >= last:
            self._last = (chunk, table)

    def _save(self, chunk: int, table: pa.Table) -> None:
        self._folder.write(chunk_name(chunk), write_chunk(table))

    def _read(self, chunk: int, columns: list[str] | None = None) -> pa.Table:
        path = self._folder.place(chunk_name(chunk))
        data = self._folder.read(chunk_name(chunk))
        if data is None:
            raise RunDirectoryError(f"{path} is missing, and the search did not remove it")
        try:
            if columns is None or read_schema(data) != self._schema:
                table = self._upgraded(read_chunk(data), path)
                return table if columns is None else table.select(columns)
            return read_chunk(data, columns)
        except ValueError as error:
            raise RunDirectoryError(f"{path} is damaged: {error}") from None


def _interned(key: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return an equal key whose strings are interned, to save memory."""
    return tuple(sys.intern(value) if isinstance(value, str) else value for value in key)


class Tables:
    """The tables of a run directory.

    `levels` and `trajectories` take single rows (`Table.put`); the other tables take groups of rows
    (`Table.put_group`).

    Args:
        run_dir: the run directory, local or in object storage.
        space: the domain of each field of the search space, by name.
        say: receives a line about each chunk or table that is damaged or missing.
        has_begun: whether the search has run before. If so, a missing table must have been removed.

    Attributes:
        must_be_rebuilt: whether the tables must be rebuilt because a chunk or table was damaged or removed. The damage
            may have been found by an earlier process.

    Raises:
        RunDirectoryError: see `Table`.
    """

    def __init__(
        self,
        run_dir: Location,
        space: Mapping[str, Domain],
        say: Callable[[str], None] = lambda notice: None,
        *,
        has_begun: bool = False,
    ) -> None:
        folder, schema = open_folder(run_dir), schemas(space)
        self._folder, self._say = folder, say
        self.must_be_rebuilt = folder.read(REBUILD_FILE) is not None

        def table(name: str, key: tuple[str, ...], *, is_later: bool = False) -> Table:
            return Table(
                folder / name,
                schema[name],
                key,
                name=name,
                capacity=_CAPACITY.get(name, _CAPACITY_OF_OTHERS),
                may_be_absent=not has_begun or is_later,
                on_damage=self.note_damage,
            )

        self.levels = table("levels", KEYS["levels"])
        self.trajectories = table("trajectories", KEYS["trajectories"])
        self.curves = table("curves", _LEVEL)
        self.layers = table("layers", _LEVEL)
        is_first = self.levels.version == FIRST_VERSION
        self.controls = table("controls", _LEVEL, is_later=is_first)
        self.early_bird = table("early_bird", ("trajectory_id",), is_later=is_first)

    def flush(self) -> None:
        """Write all tables, each after the tables to which its rows refer."""
        for table in (self.curves, self.layers, self.controls, self.early_bird, self.levels, self.trajectories):
            table.flush()

    def note_damage(self, notice: str) -> None:
        """Record that rows were lost and must be rebuilt, and tell the user. A call to `rebuilt` clears the record."""
        # Write the marker first: if this process is killed before the rebuild is complete, the next process to open the
        # tables starts the rebuild again.
        self._folder.write(REBUILD_FILE, json.dumps({"time": time.time(), "reason": notice}).encode())
        self.must_be_rebuilt = True
        self._say(notice)

    def rebuilt(self) -> None:
        """Flush the tables, and record that all lost rows have been rebuilt."""
        self.flush()
        self._folder.remove(REBUILD_FILE)
        self.must_be_rebuilt = False
