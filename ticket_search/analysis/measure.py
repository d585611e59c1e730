"""The measure that compares a search's tickets on the test split: its columns, and which direction is better."""

from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Measure:
    """The columns of a search's metric on the test split.

    Attributes:
        final: after the last iteration.
        early_stop: at the early-stop iteration.
        higher_is_better: the metric's direction.
    """

    final: str
    early_stop: str
    higher_is_better: bool = True

    @property
    def columns(self) -> tuple[str, str]:
        """Both columns."""
        return self.final, self.early_stop

    @property
    def figures(self) -> tuple[str, str, str]:
        """Both columns, and the early-stop iteration."""
        return *self.columns, "early_stop_iteration"

    def lead(self, values: Any, references: Any) -> Any:
        """How much better values are than references, in the metric's unit; for numbers, series or arrays."""
        return values - references if self.higher_is_better else references - values


ACCURACY = Measure(final="test_accuracy", early_stop="early_stop_test_accuracy")


def measure_of(levels: pd.DataFrame) -> Measure:
    """The measure for a search's rows of `levels`: the accuracy columns where the metric is accuracy."""
    if "metric" not in levels or (levels["metric"] == "accuracy").all():
        return ACCURACY
    directions = levels["higher_is_better"].unique()
    if levels["metric"].nunique() > 1 or len(directions) > 1:
        metrics = sorted(levels["metric"].unique())
        raise ValueError(f"levels judged by {metrics} cannot be compared; give those of one task")
    return Measure(final="test_metric", early_stop="early_stop_test_metric", higher_is_better=bool(directions.item()))


def final_column(columns: Container[str]) -> str:
    """Which column of a table of arms holds the metric after the last iteration."""
    return ACCURACY.final if ACCURACY.final in columns or f"{ACCURACY.final}_gain_low" in columns else "test_metric"
