"""The number that tickets are judged by, and the verdict on it."""

from dataclasses import dataclass

#: Accuracies are counts over a split's size: 0.97 - 0.01 as binary fractions must still be 0.96.
_SLACK = 1e-9


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A task's measure of a trained network.

    Attributes:
        name: as the tables say it, e.g. ``accuracy``.
        higher_is_better: its direction.
        unit: of its values and of the search's tolerance, e.g. ``fraction of the images``.
    """

    name: str
    higher_is_better: bool
    unit: str

    def lead(self, value: float, reference: float) -> float:
        """How much better a value is than a reference, in the metric's unit; negative where it is worse."""
        return value - reference if self.higher_is_better else reference - value

    def matches(self, value: float, dense: float, tolerance: float) -> bool:
        """Whether a ticket is at most `tolerance` worse than the dense network of its seed; never if one is NaN.

        Args:
            value: of the ticket, on the validation split.
            dense: of the dense network.
            tolerance: in the metric's unit, 0 or more.
        """
        if self.higher_is_better:
            return bool(value >= dense - tolerance - _SLACK)
        return bool(value <= dense + tolerance + _SLACK)
