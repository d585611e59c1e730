"""Reading the tables of a run directory, of a search that runs or has ended."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ticket_search.errors import RunDirectoryError
from ticket_search.results.schema import KEYS, check_version


@dataclass(frozen=True, kw_only=True)
class Results:
    """The tables of a run directory, each sorted by its key.

    Attributes:
        levels: one row per (trajectory, level).
        trajectories: one row per trajectory.
        curves: one row per (trajectory, level, iteration) evaluated.
        layers: one row per (trajectory, level, prunable tensor).
    """

    levels: pd.DataFrame
    trajectories: pd.DataFrame
    curves: pd.DataFrame
    layers: pd.DataFrame


def load_results(run_dir: str | Path) -> Results:
    """Read the tables of a run directory. A search may be writing them.

    Raises:
        RunDirectoryError: it is not a run directory, or a damaged one, or one of a newer version of this package.
    """
    folder = Path(run_dir)
    if not folder.is_dir():
        raise RunDirectoryError(f"{str(run_dir)!r} is not a run directory: there is no such folder")
    missing = [f"{name}/" for name in KEYS if not _first_part(folder / name).is_file()]
    if missing:
        raise RunDirectoryError(f"{str(run_dir)!r} is not a run directory: it has no table {', '.join(missing)}")
    # Trajectories first: the writer writes them last, so the levels they speak of are there by now.
    return Results(
        **{name: _read(folder / name, KEYS[name]) for name in ("trajectories", "levels", "layers", "curves")}
    )


def _read(folder: Path, key: tuple[str, ...]) -> pd.DataFrame:
    try:
        check_version(pq.read_schema(_first_part(folder)), folder)
        return pd.read_parquet(folder).sort_values(list(key), ignore_index=True)
    except (pa.ArrowException, OSError) as error:
        raise RunDirectoryError(f"{str(folder)!r} cannot be read: {error}") from None


def _first_part(folder: Path) -> Path:
    return folder / "part-00000.parquet"
