"""Which trajectories to drop. Tickets are compared at equal compression: at other rates a level is another ticket."""

from bisect import bisect_left
from dataclasses import dataclass, field
from math import ceil, log2

from ticket_search.results.verdict import is_matching
from ticket_search.spec.search import EarlyStoppingSpec


@dataclass
class _Course:
    """How a trajectory has done so far.

    Attributes:
        log_compression: log2 of the compression of each level; grows.
        gap: validation accuracy minus that of its own dense network, at each level.
        unmatched: levels in a row, up to the last, that clearly do not match.
    """

    log_compression: list[float] = field(default_factory=list)
    gap: list[float] = field(default_factory=list)
    unmatched: int = 0

    def gap_at(self, log_compression: float) -> float | None:
        """The gap at a compression, between two levels by linear interpolation; None beyond what it has reached."""
        i = bisect_left(self.log_compression, log_compression)
        if i == len(self.log_compression):
            return None
        if i == 0 or self.log_compression[i] == log_compression:
            return self.gap[i]
        x0, x1 = self.log_compression[i - 1 : i + 1]
        y0, y1 = self.gap[i - 1 : i + 1]
        return y0 + (y1 - y0) * (log_compression - x0) / (x1 - x0)


class EarlyStopping:
    """Watches every trajectory of a search and says which to drop.

    Args:
        spec: the rules; None never drops any.
        tolerance: of the search's verdict on matching.
    """

    def __init__(self, spec: EarlyStoppingSpec | None, tolerance: float) -> None:
        self._spec = spec
        self._tolerance = tolerance
        self._courses: dict[str, _Course] = {}

    def observe(
        self, trajectory_id: str, *, compression: float, val_accuracy: float, dense_val_accuracy: float
    ) -> str | None:
        """Take in a finished level.

        Returns:
            Why its trajectory should be dropped, or None.
        """
        course = self._courses.setdefault(trajectory_id, _Course())
        near = self._tolerance + (self._spec.margin if self._spec else 0.0)
        matching = is_matching(val_accuracy, dense_val_accuracy, near)
        course.log_compression.append(log2(compression))
        course.gap.append(val_accuracy - dense_val_accuracy)
        course.unmatched = 0 if matching else course.unmatched + 1
        if self._spec is None:
            return None
        return self._collapsed(course, self._spec) or self._among_the_worst(trajectory_id, course, self._spec)

    def forget(self, trajectory_id: str) -> None:
        """Leave a trajectory out of comparisons: it starts over."""
        self._courses.pop(trajectory_id, None)

    def _collapsed(self, course: _Course, spec: EarlyStoppingSpec) -> str | None:
        recent = course.gap[-spec.collapse_levels :]
        if course.unmatched < spec.collapse_levels or max(recent) >= -spec.collapse:
            return None
        return f"collapsed: {len(recent)} levels more than {spec.collapse:g} below the dense network's accuracy"

    def _among_the_worst(self, trajectory_id: str, course: _Course, spec: EarlyStoppingSpec) -> str | None:
        if course.unmatched < spec.patience:
            return None
        here, own = course.log_compression[-1], course.gap[-1]
        others = [
            gap
            for other, peer in self._courses.items()
            if other != trajectory_id and (gap := peer.gap_at(here)) is not None
        ]
        count = len(others) + 1
        if count < spec.min_trajectories or own >= max(others):
            return None
        # The rank from below, counted from 0: the worst of them has rank 0, whatever the fraction.
        rank = sum(gap < own for gap in others)
        if rank >= max(1, ceil(spec.worst_fraction * count)):
            return None
        return (
            f"no match for {course.unmatched} levels, and of {count} trajectories at compression {2**here:.3g} "
            f"{count - 1 - rank} did as well or better"
        )
