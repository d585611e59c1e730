"""Reading the tables of a run directory, of a search that runs or has ended."""

import time
from dataclasses import dataclass

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ticket_search.errors import RunDirectoryError
from ticket_search.results.columns import SEARCHED, table_columns
from ticket_search.results.schema import KEYS, LATER_TABLES, check_version, later_columns, schemas, version_of
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
    """Read the tables of a run directory, local or in object storage. A search may be writing them.

    Raises:
        RunDirectoryError: it is not a run directory, or a damaged one, or one of a newer version of this package.
        StorageError: it cannot be read.
    """
    folder = open_folder(run_dir)
    there = {name: folder / name for name in KEYS}
    absent = {name for name, table in there.items() if not table.files()}
    missing = [f"{name}/" for name in KEYS if name in absent and name not in LATER_TABLES]
    if len(absent) == len(KEYS) and not folder.files():
        raise RunDirectoryError(f"{str(run_dir)!r} is not a run directory: there is no such folder, or it is empty")
    if missing:
        raise RunDirectoryError(f"{str(run_dir)!r} is not a run directory: it has no table {', '.join(missing)}")
    # Trajectories first: the writer writes them last, so the levels they speak of are there by now.
    order = ("trajectories", "levels", "layers", "curves", "controls", "early_bird")
    return Results(**{name: _empty(name) if name in absent else _read(there[name], name) for name in order})


def _empty(name: str) -> pd.DataFrame:
    found: pd.DataFrame = schemas({})[name].empty_table().to_pandas()
    return found


def _read(folder: Folder, name: str) -> pd.DataFrame:
    for attempt in range(_ATTEMPTS):
        try:
            return _read_once(folder, name)
        except RunDirectoryError:
            # In object storage, where a file is read in several requests, the search may have replaced it in between.
            if folder.grows or attempt == _ATTEMPTS - 1:
                raise
            time.sleep(0.2)
    raise AssertionError("the last attempt returns or raises")


def _read_once(folder: Folder, name: str) -> pd.DataFrame:
    place = folder.parquet()
    try:
        schema = pq.read_schema(f"{place['path']}/part-00000.parquet", filesystem=place["filesystem"])
        check_version(schema, folder)
        frame = pd.read_parquet(**place)
    except (pa.ArrowException, OSError) as error:
        raise RunDirectoryError(f"{str(folder)!r} cannot be read: {error}") from None
    frame = _with_later_columns(frame, name, version_of(schema))
    return frame.sort_values(list(KEYS[name]), ignore_index=True)


def _with_later_columns(frame: pd.DataFrame, name: str, version: int) -> pd.DataFrame:
    """A table of an earlier schema version with the columns that came later, in the present order."""
    missing = [column for column in later_columns(name, version) if column.name not in frame]
    if not missing:
        return frame
    for column in missing:
        if column.older_as:
            frame[column.name] = frame[column.older_as]
        else:
            values = pa.array([column.older] * len(frame), column.type)
            frame[column.name] = pa.table({"": values}).to_pandas()[""]
    declared = [column.name for column in table_columns()[name]]
    place = declared.index(SEARCHED.name) if SEARCHED.name in declared else len(declared)
    searched = [column for column in frame.columns if column not in declared]
    return frame[[*declared[:place], *searched, *declared[place + 1 :]]]
