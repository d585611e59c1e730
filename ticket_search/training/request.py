"""What is asked of a training: where it starts, with what, and who looks on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from ticket_search.config.trajectory import TrainingSpec
from ticket_search.pruning.masks import Mask
from ticket_search.tasks.task import Task
from ticket_search.training.checkpoints import Checkpoints
from ticket_search.training.outcome import Weights


class Watch(Protocol):
    """Looks at a training as it goes on, and may end it."""

    every: int
    """Iterations between two looks."""

    def __call__(self, iteration: int, weights: Weights) -> bool:
        """Whether the training is to end after this iteration; the weights are the network's own, not to be changed."""

    def state(self) -> tuple[Any, Weights]:
        """What it remembers, for a checkpoint: plain JSON data, and tensors."""

    def restore(self, record: Any, tensors: Weights) -> None:
        """Remember what `state` gave."""


@dataclass(frozen=True, kw_only=True)
class LevelInputs:
    """What one training starts from.

    Attributes:
        weights: every parameter and buffer of the network, by name.
        mask: which weights are trained; the others stay as they are in `weights`. Empty for a dense network.
        seed: the run's seed: data order, augmentation, dropout.
        start: iterations that `weights` have already been trained; the schedule and the data go on from there.
        shift: how far data order, dropout and learning rate are ahead of the iterations counted; past the schedule's
            end, the rate stays at its last.
        keep: iterations whose weights to keep: the weights after so many updates.
        stop: end after so many iterations already, and measure nothing on the test split.
        watch: may end the training earlier, which then counts as finished.
    """

    weights: Mapping[str, Tensor]
    mask: Mask
    seed: int
    start: int = 0
    shift: int = 0
    keep: tuple[int, ...] = ()
    stop: int | None = None
    watch: Watch | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainRequest:
    """A training that a trajectory asks an executor for.

    Attributes:
        level: where it starts.
        network: the architecture, on the task's device. Its own values are overwritten; nobody else uses it until the
            training is done.
        task: what it is trained to do.
        training: resolved: every duration in iterations.
        key: of what is trained, in the level store.
        executor: the name of the one that is asked; see `executors.registry`.
        checkpoints: where the training is kept and gone on from; None keeps none. The outputs are the same, to the
            bit, however often it was interrupted.
    """

    level: LevelInputs
    network: nn.Module
    task: Task
    training: TrainingSpec
    key: str
    executor: str = "plain"
    checkpoints: Checkpoints | None = None

    @property
    def stop(self) -> int:
        """The iteration that the training ends at, unless its watch ends it before."""
        return self.level.stop or int(self.training.iterations)
