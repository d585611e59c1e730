"""Exports a ticket of a search to a file, and finds the trajectory of a ticket."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ticket_search.config.base import unknown
from ticket_search.config.trajectory import TrajectorySpec
from ticket_search.errors import SpecError, quoted
from ticket_search.results.plain import records
from ticket_search.results.reading import load_results
from ticket_search.runs.directory import read_spec
from ticket_search.runs.places import data_path, store_folder
from ticket_search.search.suggestions import SuggestionRecord
from ticket_search.storage.folder import Folder
from ticket_search.storage.local import LocalFolder
from ticket_search.tasks.registry import task_kind
from ticket_search.tasks.task import Source

if TYPE_CHECKING:
    from ticket_search.lottery.finished import FinishedTrajectory

_SHOWN = 10
#: The maximum length of a ticket file's name. File systems allow 255 bytes, but the temporary file has a longer name.
_NAME_BYTES = 200


def export_ticket(run_dir: Folder, name: str, path: Path, *, data_dir: str | None = None) -> None:
    """Write a ticket to a file.

    Args:
        run_dir: the run directory of the search.
        name: the name of the ticket, ``<trajectory_id>/<level>``, as in `analysis.tickets.tickets`.
        path: the path of the file, which must not exist.
        data_dir: the folder of the data sets; None means the folder that the search used.

    Raises:
        SpecError: the search has no such ticket, the ticket's pruned weights are not zero, the file already exists, or
            its folder does not exist.
        StorageError: the level is missing or damaged in the store, or the file cannot be written.
    """
    _check_target(path)
    trajectory, level, figures = find_ticket(run_dir, name)
    if trajectory.pruning.reinit_pruned != "zero":
        raise SpecError(
            f"{name!r} keeps its pruned weights at their initial values (pruning.reinit_pruned "
            f"{trajectory.pruning.reinit_pruned!r}); only tickets whose pruned weights are zero can be exported"
        )
    source = read_data(run_dir, trajectory, data_dir)
    finished = open_finished(run_dir, trajectory, level, str(figures["level_key"]), source)
    ticket = finished.ticket(level, name, figures)
    LocalFolder(path.parent.absolute()).write(path.name, ticket.to_bytes())


def _check_target(path: Path) -> None:
    if os.path.lexists(path):
        raise SpecError(f"{str(path)!r} already exists; give another name, or remove it")
    if len(os.fsencode(path.name)) > _NAME_BYTES:
        raise SpecError(f"{quoted(str(path))} cannot be written: give a name of at most {_NAME_BYTES} bytes")
    folder = path.absolute().parent
    if not folder.is_dir():
        nearest = next(outer for outer in (folder, *folder.parents) if outer.exists())
        wrong = (
            f"there is no folder {str(folder)!r}" if nearest.is_dir() else f"{str(nearest)!r} is a file, not a folder"
        )
        raise SpecError(f"{str(path)!r} cannot be written: {wrong}; create the folder first, or give another path")


def read_data(run_dir: Folder, trajectory: TrajectorySpec, data_dir: str | None) -> Source:
    """Read a trajectory's data set from `data_dir`; None means the folder that the search used."""
    folder = Path(data_dir) if data_dir else data_path(read_spec(run_dir))
    source: Source = task_kind(trajectory.task).read(trajectory.dataset, folder)
    return source


def open_finished(
    run_dir: Folder, trajectory: TrajectorySpec, level: int, level_key: str, source: Source
) -> "FinishedTrajectory":
    """Open a finished trajectory of a search.

    Args:
        run_dir: the run directory of the search.
        trajectory: the trajectory, whose levels are in the search's store.
        level: a level of the trajectory.
        level_key: the key of that level in the tables.
        source: the data set.

    Raises:
        SpecError: the level now has a different key, because the data set or the code of a user-defined network has
            changed.
    """
    from ticket_search.lottery.finished import FinishedTrajectory
    from ticket_search.store.level_store import LevelStore

    spec = read_spec(run_dir)
    task = task_kind(trajectory.task).on(trajectory.dataset, source, "cpu")
    finished = FinishedTrajectory(trajectory, task, LevelStore(store_folder(spec, run_dir)))
    if finished.level_key(level) != level_key:
        raise SpecError(
            f"dataset {trajectory.dataset.name!r}: the data differ from those that the search used, or the code of a "
            "user-defined network has changed; give the --data-dir of the original data"
        )
    return finished


def find_ticket(run_dir: Folder, name: str) -> tuple[TrajectorySpec, int, dict[str, object]]:
    """Return the trajectory that found a ticket, the ticket's level, and its row in `levels`.

    Raises:
        SpecError: the search has no such ticket.
    """
    spec, levels = read_spec(run_dir), load_results(run_dir).levels
    names = levels["trajectory_id"] + "/" + levels["level"].astype(str)
    named = levels[(names == name) & (levels["level"] > 0)]
    if named.empty:
        known = list(names[levels["level"] > 0])
        hint = unknown("ticket", name, known[:_SHOWN]) + (f", and {len(known) - _SHOWN} more" * (len(known) > _SHOWN))
        raise SpecError(hint if known else f"unknown ticket {name!r}: {str(run_dir)!r} has no tickets yet")
    trajectory_id = str(named["trajectory_id"].iloc[0])
    suggestion = SuggestionRecord(run_dir).of(trajectory_id)
    (row,) = records(named.head(1))
    return spec.trajectory_at(suggestion.values, suggestion.seed), int(named["level"].iloc[0]), row
