"""Decides which trajectories to stop.

Tickets are compared at equal compression, because the same level is sparser at a higher pruning rate.
"""

from math import ceil, log2
from typing import TYPE_CHECKING

import numpy as np

from ticket_search.config.settings import EarlyStoppingSpec
from ticket_search.tasks.metric import Metric

if TYPE_CHECKING:
    import numpy.typing as npt


class _Courses:
    """The results of all trajectories so far.

    They are kept in arrays with one row per trajectory and one column per level, so that comparing thousands of
    trajectories is fast.
    """

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}
        self._levels = np.zeros(0, dtype=np.int64)
        # log2 of the compression: ascending within a row, and infinity beyond the row's last level.
        self._log_compression = np.full((0, 1), np.inf)
        # How much better the validation metric of a ticket is than that of its dense network; negative if it is worse.
        self._gap = np.zeros((0, 1))

    def add(self, trajectory_id: str, log_compression: float, gap: float) -> None:
        """Add a level to a trajectory."""
        row = self._rows.setdefault(trajectory_id, len(self._rows))
        self._make_room(row, self._levels[row] if row < len(self._levels) else 0)
        self._log_compression[row, self._levels[row]] = log_compression
        self._gap[row, self._levels[row]] = gap
        self._levels[row] += 1

    def gaps(self, trajectory_id: str) -> "npt.NDArray[np.float64]":
        """Return the gaps of all levels of a trajectory."""
        row = self._rows[trajectory_id]
        found: npt.NDArray[np.float64] = self._gap[row, : self._levels[row]]
        return found

    def gaps_at(self, log_compression: float, *, without: str) -> "npt.NDArray[np.float64]":
        """Return the gaps, at a given compression, of all other trajectories that have reached it.

        Between two levels of a trajectory, the gap is interpolated linearly.

        Args:
            log_compression: log2 of the compression.
            without: the id of the trajectory to leave out.
        """
        count = len(self._rows)
        x, y = self._log_compression[:count], self._gap[:count]
        after = (x < log_compression).sum(axis=1)
        reached = after < self._levels[:count]
        reached[self._rows[without]] = False
        (rows,) = np.nonzero(reached)
        after = after[rows]
        before = np.maximum(after - 1, 0)
        x0, y0, x1, y1 = x[rows, before], y[rows, before], x[rows, after], y[rows, after]
        is_level = (after == 0) | (x1 == log_compression)
        span = np.where(is_level, 1.0, x1 - x0)
        found: npt.NDArray[np.float64] = np.where(is_level, y1, y0 + (y1 - y0) * (log_compression - x0) / span)
        return found

    def clear(self, trajectory_id: str) -> None:
        """Forget the levels of a trajectory."""
        if (row := self._rows.get(trajectory_id)) is not None:
            self._log_compression[row] = np.inf
            self._levels[row] = 0

    def _make_room(self, row: int, level: int) -> None:
        rows, levels = self._log_compression.shape
        if row < rows and level < levels:
            return
        shape = (max(rows, 2 * row, 16), max(levels, 2 * int(level), 8))
        wider, gap, count = np.full(shape, np.inf), np.zeros(shape), np.zeros(shape[0], dtype=np.int64)
        wider[:rows, :levels], gap[:rows, :levels], count[:rows] = self._log_compression, self._gap, self._levels
        self._log_compression, self._gap, self._levels = wider, gap, count


class EarlyStopping:
    """Observes all trajectories of a search, and decides which to stop.

    Args:
        spec: the rules; if None, no trajectory is stopped.
        tolerance: how much worse than its dense network a matching ticket may be; see `SearchSettings`.
    """

    def __init__(self, spec: EarlyStoppingSpec | None, tolerance: float) -> None:
        self._spec = spec
        self._tolerance = tolerance
        self._courses = _Courses()
        # For each trajectory, the number of consecutive levels, up to its latest, that clearly do not match.
        self._unmatched: dict[str, int] = {}

    def observe(
        self, trajectory_id: str, *, compression: float, value: float, dense: float, metric: Metric
    ) -> str | None:
        """Observe a finished level.

        Args:
            trajectory_id: the id of the level's trajectory.
            compression: the compression of the level's ticket.
            value: the validation metric of the level's ticket.
            dense: the validation metric of the trajectory's dense network.
            metric: the metric.

        Returns:
            The reason to stop the trajectory, or None if it should continue.
        """
        near = self._tolerance + (self._spec.margin if self._spec else 0.0)
        matching = metric.matches(value, dense, near)
        log_compression, gap = log2(compression), metric.lead(value, dense)
        self._courses.add(trajectory_id, log_compression, gap)
        unmatched = self._unmatched[trajectory_id] = 0 if matching else self._unmatched.get(trajectory_id, 0) + 1
        if self._spec is None:
            return None
        return self._collapsed(trajectory_id, unmatched, self._spec) or self._among_the_worst(
            trajectory_id, unmatched, log_compression, gap, self._spec
        )

    def forget(self, trajectory_id: str) -> None:
        """Forget the levels of a trajectory that starts over."""
        self._courses.clear(trajectory_id)
        self._unmatched.pop(trajectory_id, None)

    def _collapsed(self, trajectory_id: str, unmatched: int, spec: EarlyStoppingSpec) -> str | None:
        recent = self._courses.gaps(trajectory_id)[-spec.collapse_levels :]
        if unmatched < spec.collapse_levels or recent.max() >= -spec.collapse:
            return None
        were = "was" if len(recent) == 1 else "were"
        return f"collapsed: {_levels(len(recent))} {were} more than {spec.collapse:g} worse than the dense network"

    def _among_the_worst(
        self, trajectory_id: str, unmatched: int, here: float, own: float, spec: EarlyStoppingSpec
    ) -> str | None:
        if unmatched < spec.patience:
            return None
        others = self._courses.gaps_at(here, without=trajectory_id)
        count = len(others) + 1
        if count < spec.min_trajectories or own >= others.max():
            return None
        # The worst trajectory has rank 0, and may be stopped however small `worst_fraction` is.
        rank = int((others < own).sum())
        if rank >= max(1, ceil(spec.worst_fraction * count)):
            return None
        return (
            f"no match for {_levels(unmatched)}, and {count - 1 - rank} of {count - 1} other trajectories did as well "
            f"or better at compression {2**here:.3g}"
        )


def _levels(count: int) -> str:
    return f"{count} {'level' if count == 1 else 'levels'}"
