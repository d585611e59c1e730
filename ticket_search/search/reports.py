"""The reports of engines to the search, and the progress that the search passes to its listener."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

Row = dict[str, Any]
Status = Literal["completed", "stopped", "diverged", "failed"]
#: The statuses of trajectories that a resumed search does not run again. It does run failed trajectories again.
SETTLED: tuple[Status, ...] = ("completed", "stopped", "diverged")
ENDED: tuple[Status, ...] = (*SETTLED, "failed")


@dataclass(frozen=True, kw_only=True)
class LevelReport:
    """The rows of a finished level.

    Attributes:
        level: the row of `levels`.
        curve: the rows of `curves`.
        layers: the rows of `layers`.
        controls: the rows of `controls`.
        early_bird: the rows of `early_bird`.
        notices: lines for the user, for example about a damaged entry of the store.
    """

    level: Row
    curve: list[Row]
    layers: list[Row]
    controls: list[Row] = field(default_factory=list)
    early_bird: list[Row] = field(default_factory=list)
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EndReport:
    """The end of a trajectory.

    Attributes:
        status: how the trajectory ended.
        reason: why the trajectory ended, in one line; None if it completed.
        error: the traceback of a failure, or what the last worker printed; None if there is nothing to add to `reason`.
    """

    status: Status
    reason: str | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class HaltReport:
    """An error that stops all trajectories, such as a full disk. The trajectory that reports it has not ended.

    Attributes:
        reason: the message of the error.
    """

    reason: str


@dataclass(frozen=True, kw_only=True)
class NotStarted:
    """A report that a trajectory was not started, because the search was asked to stop."""


@dataclass(frozen=True, kw_only=True)
class NotShared:
    """A report that a trajectory was not started, because the worker's machine cannot access the search's storage.

    Attributes:
        reason: one line that names the machine and the folder.
        node: the engine's id for the machine; "" if the engine uses only one machine.
    """

    reason: str
    node: str = ""


@dataclass
class Progress:
    """The progress of a search.

    Attributes:
        trials: the planned number of trajectories; None if it is unknown.
        counts: the number of trajectories with each status.
        levels: the number of levels that finished in this process.
        best: the row of `levels` of the sparsest matching ticket so far; None if there is none.
        exhausted: whether every point of the space has been run with every seed.
        stopped: whether the search was asked to stop before its end.
    """

    trials: int | None
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("running", *ENDED), 0))
    levels: int = 0
    best: Row | None = None
    exhausted: bool = False
    stopped: bool = False

    @property
    def done(self) -> int:
        """The number of trajectories that have ended."""
        return sum(count for status, count in self.counts.items() if status != "running")


Listener = Callable[[Progress, Row], None]
