"""Reads the tables of a run directory, during or after a search."""

import shlex
import time
from dataclasses import dataclass

import pandas as pd
import pyarrow as pa

from ticket_search.errors import RunDirectoryError
from ticket_search.results.chunks import chunk_name, is_chunk, read_chunk
from ticket_search.results.columns import SEARCHED, table_columns
from ticket_search.results.schema import (
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
        curves: one row per (trajectory, level, iteration) evaluated.
        layers: one row per (trajectory, level, prunable tensor).
        controls: one row per (trajectory, level, control, draw).
        early_bird: one row per (trajectory, iteration, earlier iteration) whose masks early-bird compared.
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
        RunDirectoryError: `run_dir` is not a run directory, one of its files is damaged, or a newer version wrote it.
        StorageError: the files cannot be read.
    """
    folder = open_folder(run_dir)
    absent = {name for name in KEYS if not _chunks(folder / name)}
    missing = [f"{name}/" for name in KEYS if name in absent and name not in LATER_TABLES]
    if len(absent) == len(KEYS) and not folder.files():
        raise RunDirectoryError(f"{str(run_dir)!r} is not a run directory: there is no such folder, or it is empty")
    if missing:
        tables = f"it has no table {', '.join(missing)}"
        if len(absent) == len(KEYS):
            raise RunDirectoryError(f"{str(run_dir)!r} is not a run directory: {tables}")
        resume = f"ticket-search resume {shlex.quote(str(run_dir))}"
        raise RunDirectoryError(f"{str(run_dir)!r} is damaged: {tables}; `{resume}` rebuilds it from the store")
    # The writer writes trajectories last. If they are read first, all the levels that they count exist already.
    order = ("trajectories", "levels", "layers", "curves", "controls", "early_bird")
    return Results(**{name: _empty(name) if name in absent else _read(folder, name) for name in order})


def _chunks(folder: Folder) -> list[str]:
    return [file.name for file in folder.files() if is_chunk(file.name)]


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
            # A file in object storage is read in several requests, between which the search may have replaced it.
            if folder.grows or attempt == _ATTEMPTS - 1:
                resume = f"ticket-search resume {shlex.quote(str(run_dir))}"
                raise RunDirectoryError(f"{error}; `{resume}` rebuilds it from the store") from None
            time.sleep(0.2)
    version = min(version_of(chunk.schema) for chunk in chunks)
    later = later_columns(name, version)
    # While a search rewrites a table of an earlier version, some chunks have the later columns and some do not.
    columns = _order(name, with_later_columns(chunks[0], later).column_names)
    try:
        alike = [with_later_columns(chunk, later).select(columns).replace_schema_metadata() for chunk in chunks]
        frame: pd.DataFrame = pa.concat_tables(alike).to_pandas()
    except (KeyError, pa.ArrowInvalid) as error:
        raise RunDirectoryError(f"{str(folder)!r} is not the table {name} of a search: {error.args[0]}") from None
    return frame.sort_values(list(KEYS[name]), ignore_index=True)


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
    """Return the columns of a table in the current order, with the searched fields in their place."""
    declared = [column.name for column in table_columns()[name]]
    place = declared.index(SEARCHED.name) if SEARCHED.name in declared else len(declared)
    searched = [column for column in columns if column not in declared]
    return [*declared[:place], *searched, *declared[place + 1 :]]
