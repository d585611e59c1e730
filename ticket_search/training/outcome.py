"""What a training comes to."""

import math
from dataclasses import dataclass

from torch import Tensor

from ticket_search.tasks.metric import Metric

Weights = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One evaluation of a learning curve.

    Attributes:
        iteration: updates of the schedule before it.
        train_loss: the mean over the batches since the evaluation before.
        val_loss: on the validation split; nan where the task has no loss there.
        val_metric: the task's metric on the validation split.
    """

    iteration: int
    train_loss: float
    val_loss: float
    val_metric: float

    def cost(self, metric: Metric) -> float:
        """What the best point has the least of: the validation loss, or the metric where there is no loss."""
        if not math.isnan(self.val_loss):
            return self.val_loss
        return -self.val_metric if metric.higher_is_better else self.val_metric


@dataclass(frozen=True, kw_only=True)
class LevelOutputs:
    """What one training came to.

    Attributes:
        weights: every parameter and buffer after the last iteration.
        kept: iteration -> weights, for the iterations in `LevelInputs.keep`.
        curve: one point every `evaluate_every` iterations, and one at the end. Its last point is the level's result.
        diverged: whether a loss, or the metric, of the last point is not finite; training ended there and nothing
            below is known.
        test_loss, test_metric: after the last iteration; not measured where training was to `LevelInputs.stop`.
        early_stop_iteration: of the lowest validation loss on the curve (the first of equal ones), or of the best
            metric where the task has no loss.
        early_stop_test_metric: of the weights at that iteration.
        iterations: updates made.
    """

    weights: Weights
    kept: dict[int, Weights]
    curve: list[Point]
    diverged: bool
    test_loss: float = math.nan
    test_metric: float = math.nan
    early_stop_iteration: int = -1
    early_stop_test_metric: float = math.nan
    iterations: int
    train_seconds: float
