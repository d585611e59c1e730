"""What a task is: the roles that `training`, `lottery` and `launch` know it by. Loads no torch.

A task has a *kind*, which a driver uses without torch: it reads the data and checks a search. A worker makes the *task*
itself of it, on one device: networks, trainings, scores. A *session* is what one training gets from its task.

A task of one's own subclasses `TaskKind`, `Task` and, where its trainings remember something, `Session`, and is named
in a search space as ``task: package.module:Kind``. `classification` is the example to read.
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
    """What a network comes to on a split.

    Attributes:
        value: in the metric's unit.
        loss: the mean loss, in nats where it is a cross-entropy; None where the task has none.
    """

    value: float
    loss: float | None


@dataclass(frozen=True, kw_only=True)
class NetworkSize:
    """Numbers of a network: all that is kept of it, and the weights that pruning may touch."""

    values: int
    prunable: int


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What a trajectory and its data come to, once they have been found to fit.

    Attributes:
        training_examples: of an epoch.
        inputs: keyword arguments that the network is built with.
        size: of the network.
        notices: lines about the data that the user should read; the search runs all the same.
    """

    training_examples: int
    inputs: Mapping[str, Any]
    size: NetworkSize
    notices: tuple[str, ...] = ()


class Source(Protocol):
    """What is read once, by the driver, and shared with the workers."""

    @property
    def fingerprint(self) -> str:
        """Changes with anything that trainings or scores depend on."""

    @property
    def size(self) -> int:
        """Bytes."""


class Session(Protocol):
    """One training's data or experience, in the order of its seed.

    What it gives may depend on nothing but its seed, the iteration and its state: a training that is taken up midway
    must see what it would have seen. The subclass of a task without a state has only `loss`.
    """

    def loss(self, network: "nn.Module", iteration: int) -> "Tensor":
        """The loss that the update after `iteration` updates lessens: a scalar with a gradient, on the device.

        Args:
            network: in training mode. torch's generators are seeded for this iteration.
            iteration: counted from 0 over the whole schedule.
        """

    def state(self) -> "tuple[Any, dict[str, Tensor]]":
        """What it remembers between two iterations, for a checkpoint: plain JSON data, and tensors."""
        return {}, {}

    def restore(self, record: Any, tensors: "Mapping[str, Tensor]") -> None:
        """Remember what `state` gave."""
        del record, tensors


class Sample(Protocol):
    """Some training examples, for criteria that look at the untrained network."""

    def loss(self, network: "nn.Module") -> "Tensor":
        """The mean loss on them, as a training has it: a scalar with a gradient."""

    def ones(self) -> "Tensor":
        """A batch of one example whose every number is 1, float64."""


class Task(Protocol):
    """A task on one device, with the data of one specification; shared by all trainings on them."""

    @property
    def metric(self) -> Metric:
        """What its networks are judged by."""

    @property
    def fingerprint(self) -> str:
        """Of its source."""

    @property
    def device(self) -> "torch.device":
        """Where it trains and scores."""

    @property
    def inputs(self) -> Mapping[str, Any]:
        """Keyword arguments that networks are built with; of JSON's types."""

    @property
    def training_examples(self) -> int:
        """Of an epoch."""

    def resolved(self, dataset: DatasetSpec) -> DatasetSpec:
        """A specification of the data with all that null stood for written out."""
        return dataset

    def build(self, model: ModelSpec, seed: int, draw: int = 0) -> "nn.Module":
        """A network on the CPU, initialised from the seed alone; see `models.build`."""

    def session(self, seed: int, training: TrainingSpec, start: int) -> Session:
        """What one training gets.

        Args:
            seed: the run's.
            training: resolved: every duration in iterations.
            start: the first iteration that it will be asked for.
        """

    def score(self, network: "nn.Module", split: Split, precision: Precision) -> Score:
        """Measure a network, which is put into evaluation mode, on a split."""

    def sample(self, seed: int, training: TrainingSpec, start: int) -> Sample:
        """The training examples from iteration `start` on, so many that a gradient on them says something.

        Raises:
            SpecError: the task has none.
        """
        del seed, training, start
        raise SpecError(
            f"pruning.criterion: networks judged by {self.metric.name} have no sample to take saliency from; "
            "give a criterion of the weights' values, such as 'magnitude'"
        )

    def example(self) -> "Tensor | None":
        """Inputs, on the device, on which a network is run once to find its output layer; see `models.prunable`.

        None: the output layer is the prunable tensor registered last, unless the network has an `output_layer`.
        """
        return None

    def error(self, value: float) -> float:
        """A value of the metric as an error, which is the lower the better."""
        return -value if self.metric.higher_is_better else value


@runtime_checkable
class TaskKind(Protocol):
    """A task by its name, without data or device. Loads torch only where a method says so."""

    name: str
    """In a search space."""
    metric: Metric
    """What its networks are judged by."""

    def read(self, dataset: DatasetSpec, data_dir: Path) -> Any:
        """Read the data: a `Source`, which can be pickled.

        Raises:
            DataError: absent, or not as the task needs them.
        """

    def check(self, trajectory: TrajectorySpec, source: Any) -> Fit:
        """Refuse a data set and a network that do not fit the task or each other. May load torch.

        Raises:
            SpecError: quotes what does not fit, and says what would.
        """

    def on(self, dataset: DatasetSpec, source: Any, device: str) -> Task:
        """The task itself, its data on a device. Loads torch."""
