"""Writing the tables, so that at any moment ``pd.read_parquet(folder)`` works and holds no row twice.

A table's folder holds ``part-00000.parquet``, ``part-00001.parquet``, ...; all but the last are full. Each is only ever
replaced whole, under its own name, and a row never moves to another file: there are few files, and no compaction to
be interrupted. Only the search's driver writes.
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
#: Rows after which a chunk is full. The last chunk is written anew at every flush: where rows are wide, it is short.
_CAPACITY = {"levels": 10_000, "trajectories": 10_000}
_CAPACITY_OF_OTHERS = 50_000
#: Exists from the moment that a damaged chunk is set aside until its rows have been rebuilt.
REBUILD_FILE = "rebuild.json"


class Table:
    """The one writer of a table. Rows are held in memory until `flush`; full chunks are not held at all.

    Args:
        folder: of the chunks, local or in object storage; made if it is not there.
        schema: of the rows.
        key: the columns that tell rows apart (for `put`), or groups of rows written together (for `put_group`).
        name: in `columns.table_columns`, which says what columns a table of an earlier version may lack.
        capacity: rows after which a chunk is full. A group stays in one chunk, which may then hold more.
        on_damage: called with a notice before a chunk that is damaged or missing is replaced by an empty one.

    Raises:
        RunDirectoryError: the folder holds a table of a newer version or with other columns, or most of its chunks are
            missing.
        StorageError: it cannot be read, or written to.
    """

    def __init__(
        self,
        folder: Location,
        schema: pa.Schema,
        key: tuple[str, ...],
        *,
        name: str | None = None,
        capacity: int = 50_000,
        on_damage: Callable[[str], None] = lambda notice: None,
    ) -> None:
        self._folder, self._schema, self._key, self._capacity = open_folder(folder), schema, key, capacity
        self._name = name
        self._on_damage = on_damage
        self._names = set(schema.names)
        self._json = [field for field in schema if is_json(field)]
        self._starts = [0]  # the number of each chunk's first row, counted over the table
        self._length = 0
        self._places: dict[tuple[Any, ...], int] = {}  # the number of the (first) row of each key
        self._pending: dict[int, Mapping[str, Any]] = {}
        self._last = (0, schema.empty_table())  # the chunk that still grows, as it is on disk
        self._open()

    def put(self, row: Mapping[str, Any]) -> None:
        """Insert a row, or replace the one of the same key. Columns left out are null.

        Raises:
            KeyError: a column of the key is missing.
            ValueError: the table has no such column.
        """
        key, row = self._key_of(row), self._encoded(row)
        if key in self._places:
            self._pending[self._places[key]] = row
        else:
            self._append(key, [row])

    def put_group(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Insert rows of one key, which appear together; ignored if that key is there already.

        Raises:
            KeyError: a column of the key is missing.
            ValueError: the rows are of several keys, or the table has no such column.
        """
        keys = {self._key_of(row) for row in rows}
        if len(keys) > 1:
            raise ValueError(f"a group has one {self._key}, not {sorted(keys)}")
        for key in keys - self._places.keys():
            self._append(key, [self._encoded(row) for row in rows])

    def flush(self) -> None:
        """Write what was put since the last flush. If it fails, the rows stay for the next one."""
        for chunk, places in groupby(sorted(self._pending), key=self._chunk):
            self._write(chunk, list(places))
        self._pending.clear()

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """Every row, or these columns of it, in the order of insertion. Flushes; one chunk at a time is in memory."""
        self.flush()
        encoded = [field for field in self._json if columns is None or field.name in columns]
        for chunk in range(len(self._starts)):
            for row in self._read(chunk, None if columns is None else list(columns)).to_pylist():
                yield row | {field.name: decode(field, row[field.name]) for field in encoded}

    def __contains__(self, key: tuple[Any, ...]) -> bool:
        return key in self._places

    def _open(self) -> None:
        self._folder.sweep()
        names = {file.name for file in self._folder.files() if is_chunk(file.name)}
        chunks = 1 + max((int(name[5:-8]) for name in names), default=-1)
        if chunks > 2 * len(names):
            raise RunDirectoryError(f"{self._folder} is damaged: of {chunks} chunks only {sorted(names)} are left")
        for chunk in range(chunks):
            self._mend(chunk)
            if chunk:
                self._starts.append(self._length)
            self._take_up(chunk)
        self._upgrade(chunks)
        if chunks:
            self._last = (chunks - 1, self._read(chunks - 1))
        else:
            self._write(0, [])

    def _mend(self, chunk: int) -> None:
        """Replace a chunk that is damaged or missing by an empty one; the damaged file is kept beside it."""
        name = chunk_name(chunk)
        path, data = self._folder.place(name), self._folder.read(name)
        try:
            if data is not None:
                read_chunk(data)
                return
            self._on_damage(f"{path} is missing; its rows are rebuilt from the level store")
        except ValueError as error:
            # Readers of data sets (pandas, pyarrow) skip names that start with an underscore.
            aside = f"_{name}.{time.time_ns()}.damaged"
            self._on_damage(
                f"{path} is damaged ({error}); it is kept as {aside}, and its rows are rebuilt from the level store"
            )
            self._folder.write(aside, data or b"")
        self._save(chunk, self._schema.empty_table())

    def _take_up(self, chunk: int) -> None:
        """Note the places of a chunk's keys; the rows of a group stand together."""
        keys = self._read(chunk, list(self._key))
        places = pa.table({**dict(zip(self._key, keys.columns, strict=True)), "": np.arange(len(keys)) + self._length})
        firsts = places.group_by(list(self._key), use_threads=False).aggregate([("", "min")])
        columns = [firsts.column(name).to_pylist() for name in self._key]
        self._places.update(
            zip(map(_interned, zip(*columns, strict=True)), firsts.column("_min").to_pylist(), strict=True)
        )
        self._length += len(keys)

    def _upgraded(self, table: pa.Table, path: str) -> pa.Table:
        """A chunk as the present schema has it; one of an earlier version lacks some columns."""
        check_version(table.schema, path)
        later = later_columns(self._name, version_of(table.schema)) if self._name else []
        try:
            return upgraded(table, self._schema, later)
        except ValueError as error:
            raise RunDirectoryError(f"{path} has other columns than this search: {error}") from None

    def _upgrade(self, chunks: int) -> None:
        """Write chunks of an earlier version anew.

        From the last to the first: who reads the folder takes the columns of the first, and finds them in all.
        """
        for chunk in reversed(range(chunks)):
            data = self._folder.read(chunk_name(chunk))
            if data is not None and version_of(read_schema(data)) < version_of(self._schema):
                self._save(chunk, self._read(chunk))

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
        """Write a chunk with the pending rows of these places, ascending, replaced or added."""
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
            raise RunDirectoryError(f"{path} is gone: something else than the search has removed it")
        try:
            if columns is None or read_schema(data) != self._schema:
                table = self._upgraded(read_chunk(data), path)
                return table if columns is None else table.select(columns)
            return read_chunk(data, columns)
        except ValueError as error:
            raise RunDirectoryError(f"{path} is damaged: {error}") from None


def _interned(key: tuple[Any, ...]) -> tuple[Any, ...]:
    """A key whose texts are kept once, however many keys and tables they stand in."""
    return tuple(sys.intern(value) if isinstance(value, str) else value for value in key)


class Tables:
    """The tables of a run directory.

    `levels` and `trajectories` take rows (`Table.put`), the others all rows of a level at once (`Table.put_group`).

    Args:
        run_dir: the run directory, local or in object storage.
        space: the search's space: field name -> what it may be.
        say: told, in a line, of each chunk that is damaged.

    Attributes:
        must_be_rebuilt: whether rows were lost with a damaged chunk, now or in an earlier process, and `rebuilt` has
            not been called since.

    Raises:
        RunDirectoryError: see `Table`.
    """

    def __init__(
        self, run_dir: Location, space: Mapping[str, Domain], say: Callable[[str], None] = lambda notice: None
    ) -> None:
        folder, schema = open_folder(run_dir), schemas(space)
        self._folder = folder
        self.must_be_rebuilt = folder.read(REBUILD_FILE) is not None

        def on_damage(notice: str) -> None:
            # Written first: a process killed between here and the end of the rebuilding leaves it to the next.
            folder.write(REBUILD_FILE, json.dumps({"time": time.time(), "reason": notice}).encode())
            self.must_be_rebuilt = True
            say(notice)

        def table(name: str, key: tuple[str, ...]) -> Table:
            capacity = _CAPACITY.get(name, _CAPACITY_OF_OTHERS)
            return Table(folder / name, schema[name], key, name=name, capacity=capacity, on_damage=on_damage)

        self.levels = table("levels", KEYS["levels"])
        self.trajectories = table("trajectories", KEYS["trajectories"])
        self.curves = table("curves", _LEVEL)
        self.layers = table("layers", _LEVEL)
        self.controls = table("controls", _LEVEL)
        self.early_bird = table("early_bird", ("trajectory_id",))

    def flush(self) -> None:
        """Write everything. A row is there before any row of another table that speaks of it."""
        for table in (self.curves, self.layers, self.controls, self.early_bird, self.levels, self.trajectories):
            table.flush()

    def rebuilt(self) -> None:
        """Note that every row that a damaged chunk held has been put again; flushes."""
        self.flush()
        self._folder.remove(REBUILD_FILE)
        self.must_be_rebuilt = False
