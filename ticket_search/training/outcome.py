"""The outputs of a training run."""

import math
from dataclasses import dataclass

from torch import Tensor

from ticket_search.tasks.metric import Metric

Weights = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Point:
    """An evaluation during training, which is one point of the learning curve.

    Attributes:
        iteration: the number of updates of the schedule that were made before the evaluation.
        train_loss: the mean loss over the batches since the previous evaluation.
        val_loss: the loss on the validation split; nan if the task has no loss.
        val_metric: the task's metric on the validation split.
    """

    iteration: int
    train_loss: float
    val_loss: float
    val_metric: float

    def cost(self, metric: Metric) -> float:
        """Return the validation loss or, if the task has no loss, the metric. The best point has the lowest cost.

        The metric is negated if higher values are better.
        """
        if not math.isnan(self.val_loss):
            return self.val_loss
        return -self.val_metric if metric.higher_is_better else self.val_metric


@dataclass(frozen=True, kw_only=True)
class LevelOutputs:
    """The outputs of one training run.

    Attributes:
        weights: every parameter and buffer after the last iteration.
        kept: the weights after each iteration in `LevelInputs.keep`, by iteration.
        curve: one point every `evaluate_every` iterations and one at the end; the last point is the level's result.
        diverged: whether a loss or the metric of the last point is not finite; if so, training ended there, and the
            test results are nan.
        test_loss, test_metric: the test results after the last iteration; nan if training ended at `LevelInputs.stop`.
        early_stop_iteration: the iteration of the point with the lowest validation loss or, if the task has no loss,
            with the best metric; the earliest one if there is a tie.
        early_stop_test_metric: the metric on the test split with the weights after `early_stop_iteration`.
        iterations: the number of updates made for this level.
        train_seconds: the seconds spent on the run by all processes that took part in it.
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
