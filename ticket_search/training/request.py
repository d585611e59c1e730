"""A request for a training: its start, its settings, its checkpoints and its watch."""

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
    """Observes a training while it runs, and may end it."""

    every: int
    """Iterations between two calls."""

    def __call__(self, iteration: int, weights: Weights) -> bool:
        """Whether to end the training now. The weights are the network's memory and must not be changed."""

    def state(self) -> tuple[Any, Weights]:
        """Its state for a checkpoint: plain JSON data and tensors."""

    def restore(self, record: Any, tensors: Weights) -> None:
        """Restore what `state` returned."""


@dataclass(frozen=True, kw_only=True)
class LevelInputs:
    """What one training starts from.

    Attributes:
        weights: every parameter and buffer of the network, by name.
        mask: which weights are trained; the others keep their values in `weights`. Empty for a dense network.
        seed: the run's seed; drives data order, augmentation and dropout.
        start: iterations that `weights` have been trained for; schedule and data order continue from there.
        shift: added to the iteration for data order, dropout and learning rate; past the schedule's end, the rate
            keeps its last value.
        keep: numbers of updates after which to keep the weights.
        stop: end after this many iterations, without measuring the test split.
        watch: may end the training earlier; the training then counts as finished.
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
    """A training that a trajectory requests from an executor.

    Attributes:
        level: what it starts from.
        network: the architecture, on the task's device. Its values are overwritten; until the training is done, it
            must not be used for anything else.
        task: what the network is trained to do.
        training: resolved: every duration in iterations.
        key: the level store's key of what is trained.
        executor: name of the executor; see `executors.registry`.
        checkpoints: where the training saves its state and resumes from; None disables checkpoints. Interruptions
            do not change a bit of the outputs.
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
        """The iteration at which the training ends, unless its watch ends it earlier."""
        return self.level.stop or int(self.training.iterations)
