"""Finds out how trajectories had ended before a table was damaged, so that their replays end in the same way."""

from collections.abc import Mapping
from dataclasses import dataclass

from ticket_search.results.events import read_events
from ticket_search.search.reports import SETTLED, Row
from ticket_search.storage.folder import Folder


@dataclass(frozen=True, kw_only=True)
class Settled:
    """A trajectory that had completed, diverged or been stopped.

    Attributes:
        stop_after: the number of levels after which it had been stopped; None if it had ended by itself.
        reason: the reason why it had been stopped, or else its status.
    """

    stop_after: int | None
    reason: str


def settled_before(run_dir: Folder, trajectories: Mapping[str, Row]) -> dict[str, Settled]:
    """Return the trajectories that need no further training, by id.

    Early stopping compares a trajectory with those that ended before it, but replays end in another order. If it
    decided again, it might let a stopped trajectory train further levels.

    Args:
        run_dir: the run directory, whose events are read because the row of a trajectory may be lost.
        trajectories: the remaining rows of the table `trajectories`, by id.
    """
    settled: dict[str, Settled] = {}
    levels: dict[str, int] = {}
    for event in read_events(run_dir):
        name = event.get("trajectory_id", "")
        if event["event"] == "trajectory_ended" and event.get("status") in SETTLED:
            settled[name] = _settled(event["status"], event.get("reason"), levels.get(name, 0))
        elif event["event"] in ("level_finished", "level_reused") and "level" in event:
            levels[name] = max(levels.get(name, 0), event["level"] + 1)
    for name, row in trajectories.items():
        if row["status"] in SETTLED:
            settled[name] = _settled(row["status"], row["reason"], row["levels"])
    return settled


def _settled(status: str, reason: str | None, levels: int) -> Settled:
    return Settled(stop_after=levels if status == "stopped" else None, reason=reason or status)
