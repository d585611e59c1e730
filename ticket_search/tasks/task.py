"""The interfaces through which `training`, `lottery` and `launch` use tasks. This module does not import torch.

In the driver, a *task kind* reads the data and checks a search. On a worker, the task kind creates a *task* on one
device. The task builds networks, scores them, and creates a *session* for each training run.

To add a task, subclass `TaskKind`, `Task` and `Session`, and name the task kind in a search space, as in
``task: package.module:Kind``. The modules `classification` and `images` are an example.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from ticket_search.config.trajectory import DatasetSpec, ModelSpec, Precision, TrainingSpec, TrajectorySpec
from ticket_search.errors import SpecError
from ticket_search.tasks.metric import Metric

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Split = Literal["validation", "test"]


@dataclass(frozen=True, kw_only=True)
class Score:
    """The result of scoring a network on a split.

    Attributes:
        value: the metric, in its unit.
        loss: the mean loss, in nats if it is a cross-entropy; None if the task has no loss.
    """

    value: float
    loss: float | None


@dataclass(frozen=True, kw_only=True)
class NetworkSize:
    """The size of a network.

    Attributes:
        values: the total number of elements in the network's parameters and buffers.
        prunable: the number of prunable weights among these elements.
    """

    values: int
    prunable: int


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The result of checking that a trajectory and its data fit each other.

    Attributes:
        training_examples: the number of training examples per epoch.
        inputs: keyword arguments for building the network.
        size: the size of the network.
        notices: one-line warnings about the data for the user; they do not stop the search.
    """

    training_examples: int
    inputs: Mapping[str, Any]
    size: NetworkSize
    notices: tuple[str, ...] = ()


class Source(Protocol):
    """Data that the driver reads once and shares with the workers."""

    @property
    def fingerprint(self) -> str:
        """A digest of everything in the data that training or scoring depends on."""

    @property
    def size(self) -> int:
        """The size in bytes."""


class Session(Protocol):
    """The data or experience of one training run, in an order determined by the run's seed.

    Losses may depend only on the seed, the iteration and the session's state, so that a resumed run has the same
    result as an uninterrupted one. A session without state implements only `loss`.
    """

    def loss(self, network: "nn.Module", iteration: int) -> "Tensor":
        """Return the loss to minimize in an update: a scalar with a gradient, on the device.

        Args:
            network: the network, in training mode; torch's generators are seeded for this iteration.
            iteration: the number of earlier updates, counted over the whole schedule.
        """

    def state(self) -> "tuple[Any, dict[str, Tensor]]":
        """Return the session's state between two iterations, for a checkpoint: plain JSON data and tensors."""
        return {}, {}

    def restore(self, record: Any, tensors: "Mapping[str, Tensor]") -> None:
        """Restore a state that `state` returned."""
        del record, tensors


class Sample(Protocol):
    """A sample of training examples, for criteria that score the weights of an untrained network."""

    def loss(self, network: "nn.Module") -> "Tensor":
        """Return the mean training loss over the sample, a scalar with a gradient."""

    def ones(self) -> "Tensor":
        """Return a float64 batch of one example whose elements are all 1."""


class Task(Protocol):
    """A task on one device, with one specification's data. All training runs on that data share the task."""

    @property
    def metric(self) -> Metric:
        """The metric by which networks are judged."""

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the task's `Source`."""

    @property
    def device(self) -> "torch.device":
        """The device on which networks are trained and scored."""

    @property
    def inputs(self) -> Mapping[str, Any]:
        """Keyword arguments for building networks. The values have JSON types."""

    @property
    def training_examples(self) -> int:
        """The number of training examples per epoch."""

    def resolved(self, dataset: DatasetSpec) -> DatasetSpec:
        """Return the data's specification with null fields replaced by the values in use."""
        return dataset

    def build(self, model: ModelSpec, seed: int, draw: int = 0) -> "nn.Module":
        """Build a network on the CPU, initialized from the seed alone; see `models.build`."""

    def session(self, seed: int, training: TrainingSpec, start: int) -> Session:
        """Create the session of one training run.

        Args:
            seed: the trajectory's seed.
            training: the training settings, with every duration in iterations.
            start: the first iteration whose loss will be requested.
        """

    def score(self, network: "nn.Module", split: Split, precision: Precision) -> Score:
        """Score a network on a split, after switching it to evaluation mode."""

    def sample(self, seed: int, training: TrainingSpec, start: int) -> Sample:
        """Return training examples from iteration `start` on, enough for a meaningful gradient.

        Raises:
            SpecError: the task does not support saliency criteria.
        """
        del seed, training, start
        raise SpecError(
            f"pruning.criterion: a task judged by {self.metric.name!r} provides no sample for saliency criteria; "
            "use a criterion that needs only the weights' values, such as 'magnitude'"
        )

    def example(self) -> "Tensor | None":
        """Return example inputs, on the device, that are used to find a network's output layer; see `models.prunable`.

        None means that the output layer is the prunable tensor registered last, unless the network has an attribute
        `output_layer`.
        """
        return None

    def error(self, value: float) -> float:
        """Convert a value of the metric to an error, for which lower is better."""
        return -value if self.metric.higher_is_better else value


@runtime_checkable
class TaskKind(Protocol):
    """A named kind of task, without data or a device. Only the methods that say so import torch."""

    name: str
    """The name in a search space."""
    metric: Metric
    """The metric by which networks are judged."""

    def read(self, dataset: DatasetSpec, data_dir: Path) -> Any:
        """Read the data and return it as a `Source` that can be pickled.

        Raises:
            DataError: the data is missing or does not suit the task.
        """

    def check(self, trajectory: TrajectorySpec, source: Any) -> Fit:
        """Check that the data set and the network fit the task and each other. This may import torch.

        Raises:
            SpecError: they do not fit; the message quotes the wrong value and says what would fit.
        """

    def on(self, dataset: DatasetSpec, source: Any, device: str) -> Task:
        """Return the task with its data on a device. This imports torch."""
