"""The columns that contain a search's metric on the test split, and the direction of the metric."""

from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Measure:
    """The columns that contain a search's metric on the test split, and the direction of the metric.

    Attributes:
        final: the column of the metric after the last iteration.
        early_stop: the column of the metric at the early-stop iteration.
        higher_is_better: whether a higher value of the metric is better.
    """

    final: str
    early_stop: str
    higher_is_better: bool = True

    @property
    def columns(self) -> tuple[str, str]:
        """Both columns of the metric."""
        return self.final, self.early_stop

    @property
    def figures(self) -> tuple[str, str, str]:
        """Both columns of the metric, and the column of the early-stop iteration."""
        return *self.columns, "early_stop_iteration"

    def lead(self, values: Any, references: Any) -> Any:
        """Return how much better the values are than the references, in the metric's unit.

        Both arguments may be numbers, series or arrays.
        """
        return values - references if self.higher_is_better else references - values


ACCURACY = Measure(final="test_accuracy", early_stop="early_stop_test_accuracy")


def measure_of(levels: pd.DataFrame) -> Measure:
    """Return the columns that contain the metric of a search, given the search's table `levels`.

    Raises:
        ValueError: the rows belong to tasks with different metrics.
    """
    if "metric" not in levels or (levels["metric"] == "accuracy").all():
        return ACCURACY
    directions = levels["higher_is_better"].unique()
    if levels["metric"].nunique() > 1 or len(directions) > 1:
        metrics = sorted(levels["metric"].unique())
        raise ValueError(f"levels with the metrics {metrics} cannot be compared; pass the levels of one task")
    return Measure(final="test_metric", early_stop="early_stop_test_metric", higher_is_better=bool(directions.item()))


def final_column(columns: Container[str]) -> str:
    """Return the name of the column that contains the metric after the last iteration, given a table's columns."""
    return ACCURACY.final if ACCURACY.final in columns or f"{ACCURACY.final}_gain_low" in columns else "test_metric"
