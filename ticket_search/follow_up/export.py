"""Taking a ticket out of a search."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ticket_search.config.base import unknown
from ticket_search.config.trajectory import TrajectorySpec
from ticket_search.errors import SpecError
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


def export_ticket(run_dir: Folder, name: str, path: Path, *, data_dir: str | None = None) -> None:
    """Write a ticket into a file.

    Args:
        run_dir: of the search.
        name: ``<trajectory_id>/<level>``, as in `analysis.tickets.tickets`.
        path: of the file, which must not be there.
        data_dir: where data sets lie, if not where the search had them.

    Raises:
        SpecError: the search has no such ticket, or its pruned weights are not zero; or the file is there.
        StorageError: its level is not in the store any more, or the file cannot be written.
    """
    if os.path.lexists(path):
        raise SpecError(f"{str(path)!r} is there already; give another name, or remove it")
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    if not nearest.is_dir():
        raise SpecError(f"{str(path)!r} cannot be made: {str(nearest)!r} is a file, not a folder")
    trajectory, level, figures = find_ticket(run_dir, name)
    if trajectory.pruning.reinit_pruned != "zero":
        raise SpecError(
            f"{name!r} holds its pruned weights at their initial values (pruning.reinit_pruned "
            f"{trajectory.pruning.reinit_pruned!r}); a ticket's are zero"
        )
    source = read_data(run_dir, trajectory, data_dir)
    finished = open_finished(run_dir, trajectory, level, str(figures["level_key"]), source)
    ticket = finished.ticket(level, name, figures)
    LocalFolder(path.parent.absolute()).write(path.name, ticket.to_bytes())


def read_data(run_dir: Folder, trajectory: TrajectorySpec, data_dir: str | None) -> Source:
    """The data set of a trajectory of a search, from where the search had it or from `data_dir`."""
    place = Path(data_dir) if data_dir else data_path(read_spec(run_dir))
    source: Source = task_kind(trajectory.task).read(trajectory.dataset, place)
    return source


def open_finished(
    run_dir: Folder, trajectory: TrajectorySpec, level: int, level_key: str, source: Source
) -> "FinishedTrajectory":
    """A trajectory of a search, in this process, with the data set as it is read now.

    Raises:
        SpecError: with the data that is read now, or the code of a user's own network, the level has another key.
    """
    from ticket_search.lottery.finished import FinishedTrajectory
    from ticket_search.store.level_store import LevelStore

    spec = read_spec(run_dir)
    task = task_kind(trajectory.task).on(trajectory.dataset, source, "cpu")
    finished = FinishedTrajectory(trajectory, task, LevelStore(store_folder(spec, run_dir)))
    if finished.level_key(level) != level_key:
        raise SpecError(
            f"dataset {trajectory.dataset.name!r}: what is read now is not what the search was run on, or the source "
            "of its own network has changed; give the --data-dir of the same data"
        )
    return finished


def find_ticket(run_dir: Folder, name: str) -> tuple[TrajectorySpec, int, dict[str, object]]:
    """The trajectory of a ticket, its level, and the row of `levels`.

    Raises:
        SpecError: the search has no such ticket.
    """
    spec, levels = read_spec(run_dir), load_results(run_dir).levels
    names = levels["trajectory_id"] + "/" + levels["level"].astype(str)
    found = levels[(names == name) & (levels["level"] > 0)]
    if found.empty:
        known = list(names[levels["level"] > 0])
        hint = unknown("ticket", name, known[:_SHOWN]) + (f", and {len(known) - _SHOWN} more" * (len(known) > _SHOWN))
        raise SpecError(hint if known else f"unknown ticket {name!r}: {str(run_dir)!r} has none yet")
    trajectory_id = str(found["trajectory_id"].iloc[0])
    suggestion = next(s for s in SuggestionRecord(run_dir).read() if s.trajectory_id == trajectory_id)
    (row,) = records(found.head(1))
    return spec.trajectory_at(suggestion.values, suggestion.seed), int(found["level"].iloc[0]), row


_SHOWN = 10
