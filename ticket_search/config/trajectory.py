"""The specification of a trajectory: everything that its results depend on."""

import itertools
import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ticket_search.config.base import Floats, FromList, Spec, unknown
from ticket_search.config.fields import Duration, PositiveDuration, PositiveInt, Seed, resolve_duration
from ticket_search.config.older import with_newer_sections
from ticket_search.config.pruning import ControlsSpec, PruningSpec, check_early_bird, check_rewind
from ticket_search.errors import SpecError, quoted

TASKS = ("classification",)
EXECUTORS = ("plain", "sparse", "stacked")
DATASETS = ("digits", "mnist", "fashion_mnist", "cifar10", "parquet")
MODELS = (
    *("lenet_A_B[_C...]", "mlp_A_B[_C...]", "conv2", "conv4", "conv6", "vgg16", "vgg19"),
    *("resnet20", "resnet_N (N = 8, 14, 20, ...)", "torchvision/<name>"),
)
#: The pattern for the name of a user's function, which provides a network, a data set, a task or an executor.
USER_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_NAMED = {"conv2", "conv4", "conv6", "vgg16", "vgg19"}
FULLY_CONNECTED = re.compile(r"(lenet|mlp)(_[1-9]\d{0,5})+")
_RESNET = re.compile(r"resnet_?([1-9]\d*)")
_MOST_LAYERS = 9998
_MOST_UNITS = 999_999
#: The maximum number of weights between hidden layers (4 GB in fp32). With more, the kernel's out-of-memory killer
#: might end the process without a message.
_MOST_WEIGHTS = 10**9

Precision = Literal["fp32", "bf16"]
Initialization = Literal["kaiming_normal", "kaiming_uniform", "glorot_normal", "glorot_uniform", "orthogonal"]


class NormalizeSpec(Spec):
    """Per-channel normalization ``(x - mean) / std`` of images scaled to [0, 1]."""

    mean: Floats
    std: Floats

    @model_validator(mode="after")
    def _one_each(self) -> "NormalizeSpec":
        if len(self.mean) != len(self.std) or not all(s > 0 for s in self.std):
            raise ValueError(
                f"mean {quoted(list(self.mean))} and std {quoted(list(self.std))} must each have one entry per "
                "channel, with std above 0"
            )
        return self


class AugmentSpec(Spec):
    """Random changes to each training image. They are drawn again in every epoch, from the trajectory's seed.

    Attributes:
        crop: the number of zero pixels to add on each side before a random crop to the original size.
        flip: whether to mirror half of the images left to right.
    """

    crop: Annotated[int, Field(ge=0, le=256)] = 0
    flip: bool = False


class DatasetSpec(Spec):
    """The images to train on, and how they are split.

    Attributes:
        name: one of `DATASETS`, or ``package.module:function``.
        path: the folder of a ``parquet`` data set, absolute or relative to the data directory.
        validation: the number of training images held out for validation.
        split_seed: the seed that selects the validation images, independent of the seeds of trajectories.
        normalize: the constants with which images are normalized; null means the usual constants of a known data set,
            and constants computed from the training images for any other.
        augment: random changes to the training images; null means none.
        download: whether torchvision may download a missing data set.
    """

    name: str
    path: str | None = None
    validation: PositiveInt
    split_seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    normalize: NormalizeSpec | None = None
    augment: AugmentSpec | None = None
    download: bool = False

    @property
    def source(self) -> tuple[str, str | None]:
        """The fields that identify the data set's files; the other fields decide how the files are used."""
        return self.name, self.path

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in DATASETS and not USER_FUNCTION.fullmatch(name):
            raise ValueError(unknown("dataset", name, [*DATASETS, "package.module:function"]))
        return name

    @field_validator("augment")
    @classmethod
    def _no_change_is_none(cls, augment: AugmentSpec | None) -> AugmentSpec | None:
        return None if augment == AugmentSpec() else augment

    @model_validator(mode="after")
    def _path_for_parquet(self) -> "DatasetSpec":
        if (self.name == "parquet") != (self.path is not None):
            raise ValueError(
                f"path {quoted(self.path)} does not go with dataset {self.name!r}: "
                "`parquet` needs the path of a folder, and no other data set takes one"
            )
        return self


class ModelSpec(Spec):
    """The network.

    Attributes:
        name: one of `MODELS`, or a ``package.module:function`` that returns an ``nn.Module``. ``resnet_20`` is another
            spelling of ``resnet20``.
        init: the initialization of the weights of convolutions and fully connected layers; null leaves it to the
            network's code.
    """

    name: str
    init: Initialization | None = None

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if resnet := _RESNET.fullmatch(name):
            return _resnet(name, resnet[1])
        if re.fullmatch(r"(lenet|mlp)(_\d+)+", name):
            return _fully_connected(name)
        known = name in _NAMED or re.fullmatch(r"torchvision/\w+", name)
        if not known and not USER_FUNCTION.fullmatch(name):
            raise ValueError(unknown("model", name, [*MODELS, "package.module:function"]))
        return name


def _resnet(name: str, layers: str) -> str:
    if len(layers) > len(str(_MOST_LAYERS)) or int(layers) > _MOST_LAYERS:
        raise ValueError(f"{quoted(name)}: a ResNet has at most {_MOST_LAYERS} layers; give 'resnet{_MOST_LAYERS}'")
    depth = int(layers)
    if depth < 8 or depth % 6 != 2:
        near = max(8, 6 * round((depth - 2) / 6) + 2)
        raise ValueError(f"{name!r}: a ResNet for CIFAR has 6n + 2 layers: 8, 14, 20, ...; give 'resnet{near}'")
    return f"resnet{depth}"


def _fully_connected(name: str) -> str:
    if not FULLY_CONNECTED.fullmatch(name):
        raise ValueError(f"{quoted(name)}: a layer must have 1 to {_MOST_UNITS} units; give e.g. 'lenet_300_100'")
    weights = sum(a * b for a, b in itertools.pairwise(map(int, name.split("_")[1:])))
    if weights > _MOST_WEIGHTS:
        raise ValueError(
            f"{quoted(name)}: {weights} weights between hidden layers exceed the maximum of {_MOST_WEIGHTS}; "
            "give smaller layers"
        )
    return name


class OptimizerSpec(Spec):
    """Adam, or SGD with momentum, as torch defines them."""

    name: Literal["adam", "sgd"]
    lr: Annotated[float, Field(gt=0.0)]
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0

    @model_validator(mode="after")
    def _momentum_is_for_sgd(self) -> "OptimizerSpec":
        if self.name == "adam" and self.momentum:
            raise ValueError(f"momentum {self.momentum} is only for sgd; adam has no momentum")
        return self


class ScheduleSpec(Spec):
    """How the learning rate changes during training.

    Attributes:
        name: ``constant``; ``step``, which multiplies the rate by `gamma` at each milestone; or ``cosine``, which
            decreases it to 0 by the end of training.
        milestones: the milestones of ``step``: iterations, or epochs as ``"80ep"``.
        gamma: the factor of ``step``.
        warmup: how long the rate grows linearly from 0 to its full value: iterations, or epochs as ``"5ep"``.
    """

    name: Literal["constant", "step", "cosine"] = "constant"
    milestones: Annotated[tuple[Duration, ...], FromList] = ()
    gamma: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    warmup: Duration = 0

    @model_validator(mode="after")
    def _milestones_for_step(self) -> "ScheduleSpec":
        if (self.name == "step") != bool(self.milestones):
            raise ValueError(
                f"milestones {quoted(list(self.milestones))} do not go with schedule {self.name!r}: "
                "`step` needs at least one, and no other schedule takes any"
            )
        return self


class TrainingSpec(Spec):
    """How each level is trained.

    Attributes:
        optimizer: the optimizer and its settings.
        schedule: the learning rate schedule.
        batch_size: the number of examples per iteration; the last batch of an epoch is dropped if it is smaller.
        iterations: the length of level 0: a number of optimizer updates, or of epochs as ``"20ep"``.
        evaluate_every: the number of iterations between two points of the learning curve, or of epochs as ``"1ep"``.
        precision: the arithmetic of forward and backward passes: ``fp32``, or ``bf16`` in the operations that torch's
            autocast supports. Weights, updates, masks and losses are always fp32.
        executor: the executor that trains levels: ``plain``, which trains the dense network under a mask; ``sparse``,
            which computes with the kept weights of fully connected layers only, on the CPU; ``stacked``, which trains
            `ResourcesSpec.lanes` levels of a worker as one program; or ``package.module:function``. ``auto`` chooses
            ``sparse`` for fully connected networks on the CPU and ``plain`` otherwise; the run directory records the
            choice.
    """

    optimizer: OptimizerSpec
    schedule: ScheduleSpec = ScheduleSpec()
    batch_size: PositiveInt
    iterations: PositiveDuration
    evaluate_every: PositiveDuration
    precision: Precision = "fp32"
    executor: str = "auto"

    @field_validator("executor")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in ("auto", *EXECUTORS) and not USER_FUNCTION.fullmatch(name):
            raise ValueError(unknown("executor", name, ["auto", *EXECUTORS, "package.module:function"]))
        return name


def check_task(name: str) -> str:
    """Check the name of a task, and return the name.

    Raises:
        ValueError: the name is neither a known task nor ``package.module:function``.
    """
    if name not in TASKS and not USER_FUNCTION.fullmatch(name):
        raise ValueError(unknown("task", name, [*TASKS, "package.module:function"]))
    return name


class TrajectorySpec(Spec):
    """One run of iterative magnitude pruning: a configuration, a seed, and the controls to train for its tickets.

    Attributes:
        task: the task that networks are trained for: one of `TASKS`, or ``package.module:function``.
        dataset: the images.
        model: the network.
        training: how each level is trained.
        pruning: how the network is pruned and rewound.
        controls: the controls to train for its tickets.
        seed: the seed of the initialization, the data order and the augmentation.
    """

    task: str = "classification"
    dataset: DatasetSpec
    model: ModelSpec
    training: TrainingSpec
    pruning: PruningSpec = PruningSpec()
    controls: ControlsSpec = ControlsSpec()
    seed: Seed

    @model_validator(mode="before")
    @classmethod
    def _older_sections(cls, raw: Any) -> Any:
        return with_newer_sections(raw)

    @field_validator("task")
    @classmethod
    def _known_task(cls, name: str) -> str:
        return check_task(name)

    @model_validator(mode="after")
    def _controls_of_tickets(self) -> "TrajectorySpec":
        if self.controls.kinds and self.pruning.retrain != "weights":
            raise ValueError(
                f"controls.kinds: {list(self.controls.kinds)} are controls for tickets with rewound weights; "
                f"with pruning.retrain {self.pruning.retrain!r} give []"
            )
        last = self.pruning.last_level
        levels = self.controls.levels
        if self.controls.kinds and levels == "last" and last is None:
            raise ValueError("controls.levels: 'last' needs pruning.max_levels or pruning.target_densities")
        beyond = [level for level in levels or () if last is not None and isinstance(level, int) and level > last]
        if self.controls.kinds and beyond:
            raise ValueError(f"controls.levels: {beyond[0]} is above the last level, {last}; give 1 to {last}")
        return self

    @model_validator(mode="after")
    def _fine_tuning_has_a_rate(self) -> "TrajectorySpec":
        if self.pruning.retrain == "finetune" and self.training.schedule.name == "cosine":
            raise ValueError(
                "pruning.retrain 'finetune' trains at the schedule's last learning rate, which is 0 for "
                "training.schedule 'cosine'; give 'step' or 'constant', or retrain 'learning_rate'"
            )
        return self

    @model_validator(mode="after")
    def _rewind_within_training(self) -> "TrajectorySpec":
        iterations = self.training.iterations
        if isinstance(iterations, int):
            check_rewind(self.pruning.rewind_iteration, iterations)
            check_early_bird(self.pruning.early_bird, iterations)
        return self

    def resolve(self, training_images: int) -> "TrajectorySpec":
        """Return the same trajectory with epochs converted to iterations.

        Args:
            training_images: the size of the training split, without the validation images.

        Raises:
            SpecError: the batch is larger than the split, the rewind iteration is not before the end of training,
                early-bird needs more iterations than level 0 has, or the epochs amount to too many iterations.
        """
        batch = self.training.batch_size
        if batch > training_images:
            raise SpecError(
                f"training.batch_size: {batch} is more than the {training_images} training images; "
                "give at most that many"
            )
        try:
            return self._in_iterations(training_images // batch)
        except ValueError as error:
            raise SpecError(str(error)) from None

    def _in_iterations(self, epoch: int) -> "TrajectorySpec":
        training, pruning = self.training, self.pruning
        schedule = training.schedule.model_copy(
            update={
                "milestones": tuple(resolve_duration(m, epoch) for m in training.schedule.milestones),
                "warmup": resolve_duration(training.schedule.warmup, epoch),
            }
        )
        iterations = resolve_duration(training.iterations, epoch)
        every = resolve_duration(training.evaluate_every, epoch)
        training = training.model_copy(update={"iterations": iterations, "evaluate_every": every, "schedule": schedule})
        if pruning.early_bird is not None:
            every = resolve_duration(pruning.early_bird.every, epoch)
            early_bird = pruning.early_bird.model_copy(update={"every": every})
            pruning = pruning.model_copy(update={"early_bird": early_bird})
        check_rewind(pruning.rewind_iteration, iterations)
        check_early_bird(pruning.early_bird, iterations)
        return self.model_copy(update={"training": training, "pruning": pruning})
