"""Whether trainings that differ only in data order reach the same linearly connected minimum.

Measured as the error on the straight line between two of them (Frankle et al. 2020, arXiv 1912.05671, section 2).
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
    """A point on the line between the weights of two trainings.

    Attributes:
        position: 0 at the first training, 1 at the second.
        val_error, test_error: the task's metric as an error; for classification 1 - accuracy, in [0, 1].
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
    """The errors at evenly spaced points of the line, both ends included.

    Floating-point buffers, such as batch-norm statistics, are interpolated too, as in OpenLTH; integer buffers are
    copied from `one`.

    Args:
        one, other: every parameter and buffer of the network, by name.
        points: number of points, at least 2.
        network: on the task's device. Its values are overwritten.
        task: whose validation and test splits are measured.
        precision: of the forward passes.
    """
    found = []
    with reproducible(next(network.parameters()).device):
        for position in torch.linspace(0.0, 1.0, points, dtype=torch.float64).tolist():
            network.load_state_dict({name: _between(value, other[name], position) for name, value in one.items()})
            val, test = (task.error(task.score(network, s, precision).value) for s in ("validation", "test"))
            found.append(ErrorBetween(position=position, val_error=val, test_error=test))
    return found


def unknown_errors(points: int) -> list[ErrorBetween]:
    """What `errors_between` returns when a training diverged: nan at every point."""
    positions = torch.linspace(0.0, 1.0, points, dtype=torch.float64).tolist()
    return [ErrorBetween(position=position, val_error=math.nan, test_error=math.nan) for position in positions]


def _between(one: Tensor, other: Tensor, position: float) -> Tensor:
    return torch.lerp(one, other, position) if one.is_floating_point() else one
