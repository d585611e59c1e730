"""Measure stability: whether training runs that differ only in data order reach the same linearly connected minimum.

The measure is the error along the straight line between the final weights of two runs (Frankle et al. 2020,
arXiv 1912.05671, section 2).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ticket_search.config.trajectory import Precision
from ticket_search.tasks.task import Task
from ticket_search.training.determinism import reproducible


@dataclass(frozen=True, kw_only=True)
class ErrorBetween:
    """The errors at one point on the line between the final weights of two training runs.

    Attributes:
        position: the position on the line: 0 at the weights of the first run, 1 at those of the second.
        val_error, test_error: the task's metric, converted to an error; for classification 1 - accuracy, in [0, 1].
    """

    position: float
    val_error: float
    test_error: float


def errors_between(
    one: Mapping[str, Tensor],
    other: Mapping[str, Tensor],
    points: int,
    network: nn.Module,
    task: Task,
    precision: Precision,
) -> list[ErrorBetween]:
    """Return the errors at evenly spaced points on the line, including both ends.

    Floating-point buffers, such as batch-norm statistics, are interpolated too, as in OpenLTH; integer buffers are
    copied from `one`.

    Args:
        one, other: every parameter and buffer of the network, by name.
        points: the number of points, at least 2.
        network: the network, on the task's device; its parameters and buffers are overwritten.
        task: the task. Errors are measured on its validation and test splits.
        precision: the precision of the forward passes.
    """
    found = []
    with reproducible(next(network.parameters()).device):
        for position in torch.linspace(0.0, 1.0, points, dtype=torch.float64).tolist():
            network.load_state_dict({name: _between(value, other[name], position) for name, value in one.items()})
            val, test = (task.error(task.score(network, s, precision).value) for s in ("validation", "test"))
            found.append(ErrorBetween(position=position, val_error=val, test_error=test))
    return found


def unknown_errors(points: int) -> list[ErrorBetween]:
    """Return the errors if at least one of the two runs diverged: nan at every point."""
    positions = torch.linspace(0.0, 1.0, points, dtype=torch.float64).tolist()
    return [ErrorBetween(position=position, val_error=math.nan, test_error=math.nan) for position in positions]


def _between(one: Tensor, other: Tensor, position: float) -> Tensor:
    return torch.lerp(one, other, position) if one.is_floating_point() else one
