"""What the one who runs trajectories tells the search, what the search tells its listener, and how trajectories end."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

Row = dict[str, Any]
Status = Literal["completed", "stopped", "diverged", "failed"]
#: What these came to stands; a trajectory that failed is run again by a resumed search.
SETTLED: tuple[Status, ...] = ("completed", "stopped", "diverged")
ENDED: tuple[Status, ...] = (*SETTLED, "failed")


@dataclass(frozen=True, kw_only=True)
class LevelReport:
    """A finished level as rows: one of `levels`, those of `curves`, `layers`, `controls` and `early_bird`.

    `notices` are lines for the user: an entry of the store that was damaged, say.
    """

    level: Row
    curve: list[Row]
    layers: list[Row]
    controls: list[Row] = field(default_factory=list)
    early_bird: list[Row] = field(default_factory=list)
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EndReport:
    """How a trajectory ended by itself. `reason` is one line; `error` a traceback."""

    status: Status
    reason: str | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class HaltReport:
    """Why no trajectory can go on: the disk is full, say. The one that reports it has not ended."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class NotStarted:
    """The search was asked to stop before the trajectory's turn came. It has not ended."""


@dataclass(frozen=True, kw_only=True)
class NotShared:
    """The worker's machine does not reach the search's storage, so the trajectory has not begun.

    Attributes:
        reason: one line that names the machine and the location.
        node: the engine's name for the machine; "" where there is only one.
    """

    reason: str
    node: str = ""


@dataclass
class Progress:
    """Where a search stands.

    Attributes:
        trials: how many trajectories there will be; None until a grid's end is known.
        counts: status -> trajectories.
        levels: finished in this process.
        best: the row of `levels` of the sparsest matching ticket so far; level 0 is none.
        exhausted: every point of the space has been run with every seed.
        stopped: somebody asked for the search to stop before its end.
    """

    trials: int | None
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("running", *ENDED), 0))
    levels: int = 0
    best: Row | None = None
    exhausted: bool = False
    stopped: bool = False

    @property
    def done(self) -> int:
        """Trajectories that have ended."""
        return sum(count for status, count in self.counts.items() if status != "running")


Listener = Callable[[Progress, Row], None]
