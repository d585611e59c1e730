"""Determines how trajectories ended before a table was damaged, so that their replays end in the same way."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ticket_search.config.trajectory import TrajectorySpec
from ticket_search.results.events import read_events
from ticket_search.results.tables import Tables
from ticket_search.search.reports import SETTLED, Row
from ticket_search.storage.folder import Folder


@dataclass(frozen=True, kw_only=True)
class Settled:
    """A trajectory that had completed, diverged or been stopped before a table was damaged.

    Attributes:
        stop_after: the number of levels after which the trajectory was stopped; None if it ended by itself.
        reason: the reason why the trajectory was stopped, or else its status.
        level_keys: the keys of the trajectory's levels and controls, as far as the events name them.
    """

    stop_after: int | None
    reason: str
    level_keys: frozenset[str]


def settled_before(run_dir: Folder, trajectories: Mapping[str, Row]) -> dict[str, Settled]:
    """Return the trajectories that need no further training, by id.

    Early stopping compares a trajectory with the levels that have finished so far, but replayed levels finish in a
    different order. If early stopping were to decide again, it might let a stopped trajectory train further levels.

    Args:
        run_dir: the run directory, whose events are read because the rows of some trajectories may have been lost.
        trajectories: the remaining rows of the table `trajectories`, by id.
    """
    settled: dict[str, Settled] = {}
    levels: dict[str, int] = {}
    keys: dict[str, set[str]] = {}
    for event in read_events(run_dir):
        name = event.get("trajectory_id", "")
        if event["event"] == "trajectory_ended" and event.get("status") in SETTLED:
            settled[name] = _settled(event["status"], event.get("reason"), levels.get(name, 0), keys.get(name, set()))
        elif event["event"] in ("level_finished", "level_reused") and {"level", "level_key"} <= event.keys():
            levels[name] = max(levels.get(name, 0), event["level"] + 1)
            keys.setdefault(name, set()).add(event["level_key"])
    for name, row in trajectories.items():
        if row["status"] in SETTLED:
            settled[name] = _settled(row["status"], row["reason"], row["levels"], keys.get(name, set()))
    return settled


def lacks_rows(tables: Tables, row: Row) -> bool:
    """Return whether `levels`, `curves` or `layers` lacks any of the levels that a row of `trajectories` counts."""
    keys = [(row["trajectory_id"], level) for level in range(row["levels"])]
    return not all(key in table for key in keys for table in (tables.levels, tables.curves, tables.layers))


def is_whole(tables: Tables, row: Row, trajectory: TrajectorySpec) -> bool:
    """Return whether the tables contain every row of a settled trajectory, so that it need not be replayed.

    Args:
        tables: the tables of the run directory.
        row: the trajectory's row of `trajectories`.
        trajectory: the trajectory's specification.
    """
    if row["status"] not in SETTLED or lacks_rows(tables, row):
        return False
    early_bird, last = trajectory.pruning.early_bird is not None, trajectory.pruning.last_level
    keys = [(row["trajectory_id"], level) for level in range(row["levels"])]
    # With early-bird, the dense network trained for the full schedule is a control of level 0.
    controlled = [key for key in keys if trajectory.controls.of(key[1], last) or (early_bird and key[1] == 0)]
    return all(key in tables.controls for key in controlled) and (
        not early_bird or not keys or (row["trajectory_id"],) in tables.early_bird
    )


def _settled(status: str, reason: str | None, levels: int, keys: Iterable[str]) -> Settled:
    stop_after = levels if status == "stopped" else None
    return Settled(stop_after=stop_after, reason=reason or status, level_keys=frozenset(keys))
