"""Requests for trainings: the inputs, the settings, the checkpoints and the watch."""

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
    """Observes a running training, and may end it."""

    every: int
    """The number of iterations between two calls."""

    def __call__(self, iteration: int, weights: Weights) -> bool:
        """Return whether to end the training now. `weights` is the network's memory and must not be changed."""

    def state(self) -> tuple[Any, Weights]:
        """Return the watch's state for a checkpoint: plain JSON data and tensors."""

    def restore(self, record: Any, tensors: Weights) -> None:
        """Restore what `state` returned."""


@dataclass(frozen=True, kw_only=True)
class LevelInputs:
    """The inputs of one training.

    Attributes:
        weights: every parameter and buffer of the network, by name.
        mask: the weights to train; pruned ones are held at their values in `weights`. Empty for a dense network.
        seed: the run's seed, which determines data order, augmentation and dropout.
        start: the number of iterations that `weights` have been trained for; the schedule and the data order continue
            from there.
        shift: a number added to the iteration for data order, dropout and learning rate; past the schedule's end, the
            rate keeps its last value.
        keep: the iterations after which to keep a copy of the weights.
        stop: the iteration at which to end without scoring the test split; None trains to the schedule's end.
        watch: an observer that may end the training earlier, in which case the training counts as finished.
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
        level: the inputs of the training.
        network: the network, on the task's device. Its values are overwritten, and it must not be used for anything
            else until the training is done.
        task: the task to train for.
        training: the resolved settings: every duration in iterations.
        key: the level store's key of the level that the training produces.
        executor: the name of the executor; see `executors.registry`.
        checkpoints: where the training saves its state and resumes from; None disables checkpoints. A resumed training
            has bitwise the same outputs as an uninterrupted one.
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
