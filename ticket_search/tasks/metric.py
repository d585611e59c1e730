"""The metric by which tickets are judged, and the rule for when a ticket matches the dense network."""

from dataclasses import dataclass

#: A margin for rounding errors: an accuracy of 0.96 must match a dense network's 0.97 at a tolerance of 0.01.
_SLACK = 1e-9


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A task's measure of a trained network.

    Attributes:
        name: the name in the tables, e.g. ``accuracy``.
        higher_is_better: whether a higher value is better.
        unit: the unit of the metric's values and of the search's tolerance, e.g. ``fraction of the images``.
    """

    name: str
    higher_is_better: bool
    unit: str

    def lead(self, value: float, reference: float) -> float:
        """Return how much better a value is than a reference, in the metric's unit; negative if it is worse."""
        return value - reference if self.higher_is_better else reference - value

    def matches(self, value: float, dense: float, tolerance: float) -> bool:
        """Return whether a ticket is at most `tolerance` worse than its seed's dense network; False if a value is nan.

        Args:
            value: the ticket's value on the validation split.
            dense: the dense network's value on the validation split.
            tolerance: how much worse the ticket's value may be, in the metric's unit; at least 0.
        """
        if self.higher_is_better:
            return bool(value >= dense - tolerance - _SLACK)
        return bool(value <= dense + tolerance + _SLACK)
