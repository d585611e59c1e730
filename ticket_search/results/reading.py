"""Reads the tables of a run directory, during or after a search."""

import shlex
import time
from contextlib import suppress
from dataclasses import dataclass

import pandas as pd
import pyarrow as pa

from ticket_search.errors import RunDirectoryError
from ticket_search.results.chunks import chunk_name, is_chunk, read_chunk, read_schema
from ticket_search.results.columns import SEARCHED, table_columns
from ticket_search.results.schema import (
    FIRST_VERSION,
    KEYS,
    LATER_TABLES,
    check_version,
    later_columns,
    schemas,
    version_of,
    with_later_columns,
)
from ticket_search.storage.folder import Folder, Location, open_folder

_ATTEMPTS = 5


@dataclass(frozen=True, kw_only=True)
class Results:
    """The tables of a run directory, each sorted by its key.

    Attributes:
        levels: one row per (trajectory, level).
        trajectories: one row per trajectory.
        curves: one row per (trajectory, level, evaluated iteration).
        layers: one row per (trajectory, level, prunable tensor).
        controls: one row per (trajectory, level, control, draw).
        early_bird: one row per (trajectory, iteration, earlier iteration) of two masks that early-bird compared.
    """

    levels: pd.DataFrame
    trajectories: pd.DataFrame
    curves: pd.DataFrame
    layers: pd.DataFrame
    controls: pd.DataFrame
    early_bird: pd.DataFrame


def load_results(run_dir: Location) -> Results:
    """Read the tables of a run directory, local or in object storage, even while a search writes them.

    Files in a table's folder that the search did not write are ignored.

    Raises:
        RunDirectoryError: `run_dir` is not a run directory, one of its files is damaged, or a newer version of this
            package wrote it.
        StorageError: the files cannot be read.
    """
    folder = open_folder(run_dir)
    absent = {name for name in KEYS if not _chunks(folder / name)}
    if len(absent) == len(KEYS) and not folder.files():
        raise RunDirectoryError(f"{str(run_dir)!r} is not a run directory: there is no such folder, or it is empty")
    expected = set(KEYS) - (set(LATER_TABLES) if absent and _is_of_first_version(folder) else set())
    if absent & expected:
        missing = f"it has no table {', '.join(f'{name}/' for name in KEYS if name in absent & expected)}"
        if folder.read("search.yaml") is None:
            raise RunDirectoryError(f"{str(run_dir)!r} is not a run directory: {missing}")
        raise RunDirectoryError(f"{str(run_dir)!r} is damaged: {missing}; {_rebuilt_by(folder)}")
    # The search writes `trajectories` last. This function reads that table first, so the other tables already contain
    # all levels that it counts.
    order = ("trajectories", "levels", "layers", "curves", "controls", "early_bird")
    return Results(**{name: _empty(name) if name in absent else _read(folder, name) for name in order})


def _chunks(folder: Folder) -> list[str]:
    return [file.name for file in folder.files() if is_chunk(file.name)]


def _is_of_first_version(run_dir: Folder) -> bool:
    data = (run_dir / "levels").read(chunk_name(0))
    with suppress(ValueError):  # if the chunk is damaged, reading the table will report it
        return data is not None and version_of(read_schema(data)) == FIRST_VERSION
    return False


def _rebuilt_by(run_dir: Folder) -> str:
    return f"`ticket-search resume {shlex.quote(str(run_dir))}` rebuilds it from the store"


def _empty(name: str) -> pd.DataFrame:
    frame: pd.DataFrame = schemas({})[name].empty_table().to_pandas()
    return frame


def _read(run_dir: Folder, name: str) -> pd.DataFrame:
    folder = run_dir / name
    for attempt in range(_ATTEMPTS):
        try:
            chunks = _read_chunks(folder)
            break
        except ValueError as error:
            # Reading a file in object storage takes several requests, and the search may replace the file between them.
            if folder.grows or attempt == _ATTEMPTS - 1:
                raise RunDirectoryError(f"{error}; {_rebuilt_by(run_dir)}") from None
            time.sleep(0.2)
    version = min(version_of(chunk.schema) for chunk in chunks)
    later = later_columns(name, version)
    # While a search upgrades a table of an earlier version, only some of the chunks have the later columns.
    columns = _order(name, with_later_columns(chunks[0], later).column_names)
    try:
        alike = [with_later_columns(chunk, later).select(columns).replace_schema_metadata() for chunk in chunks]
        frame: pd.DataFrame = pa.concat_tables(alike).to_pandas()
        return frame.sort_values(list(KEYS[name]), ignore_index=True)
    except (KeyError, pa.ArrowException) as error:
        raise RunDirectoryError(f"{str(folder)!r} is not the {name} table of a search: {error.args[0]}") from None


def _read_chunks(folder: Folder) -> list[pa.Table]:
    chunks, names = [], _chunks(folder)
    for name in map(chunk_name, range(len(names))):
        data = folder.read(name)
        if data is None:
            raise ValueError(f"{folder.place(name)!r} is missing")
        try:
            chunks.append(read_chunk(data))
        except ValueError as error:
            raise ValueError(f"{folder.place(name)!r} is damaged ({error})") from None
        check_version(chunks[-1].schema, folder)
    return chunks


def _order(name: str, columns: list[str]) -> list[str]:
    """Return the names of a table's columns in the declared order, with the searched fields in place of `SEARCHED`."""
    declared = [column.name for column in table_columns()[name]]
    place = declared.index(SEARCHED.name) if SEARCHED.name in declared else len(declared)
    searched = [column for column in columns if column not in declared]
    return [*declared[:place], *searched, *declared[place + 1 :]]
