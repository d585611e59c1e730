"""Training requests, which contain the inputs, settings, checkpoints and watch of a training run."""

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
    """An observer of a training run that may end the run early."""

    every: int
    """The number of iterations between two calls."""

    def __call__(self, iteration: int, weights: Weights) -> bool:
        """Return whether to end the run now. `weights` shares memory with the network; do not modify it."""

    def state(self) -> tuple[Any, Weights]:
        """Return the watch's state for a checkpoint: plain JSON data and tensors."""

    def restore(self, record: Any, tensors: Weights) -> None:
        """Restore a state that `state` returned."""


@dataclass(frozen=True, kw_only=True)
class LevelInputs:
    """The inputs of one training run.

    Attributes:
        weights: every parameter and buffer of the network, by name.
        mask: the mask, empty for a dense network. Pruned weights keep the values that they have in `weights`.
        seed: the seed of the data order, the augmentation and dropout.
        start: the number of iterations that `weights` have been trained for; the schedule and the data order continue
            from there.
        shift: an offset. Data order, dropout and learning rate are those of iteration number `iteration` + `shift`;
            past the end of the schedule, the learning rate keeps its last value.
        keep: the iterations after which to keep a copy of the weights.
        stop: the iteration at which to end without scoring the test split; None trains to the end of the schedule.
        watch: an observer that may end the run early, in which case the run counts as finished.
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
    """A trajectory's request to an executor for one training run.

    Attributes:
        level: the inputs of the run.
        network: the network, on the task's device. Its weights are overwritten, and it must not be used for
            anything else until the run has ended.
        task: the task to train for.
        training: the training settings, with every duration in iterations.
        model: the name of the network in the search space; networks of the same name have the same architecture.
        key: the key of the trained level in the level store.
        executor: the name of the executor; see `executors.registry`.
        checkpoints: where the run saves its state and finds it when it resumes; None disables checkpoints. The outputs
            of a resumed run are bit-identical to those of an uninterrupted run.
    """

    level: LevelInputs
    network: nn.Module
    task: Task
    training: TrainingSpec
    key: str
    model: str = ""
    executor: str = "plain"
    checkpoints: Checkpoints | None = None

    @property
    def stop(self) -> int:
        """The iteration at which the run ends, unless its watch ends it earlier."""
        return self.level.stop or int(self.training.iterations)
