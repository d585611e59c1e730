"""One point of a search: everything that decides what a trajectory computes."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ticket_search.config.base import Floats, FromList, Spec, unknown
from ticket_search.config.fields import (
    Duration,
    PositiveInt,
    Seed,
    check_duration,
    check_positive,
    resolve_duration,
)
from ticket_search.config.older import with_newer_sections
from ticket_search.config.pruning import ControlsSpec, PruningSpec, check_early_bird, check_rewind
from ticket_search.errors import SpecError

TASKS = ("classification",)
EXECUTORS = ("plain",)
DATASETS = ("digits", "mnist", "fashion_mnist", "cifar10", "parquet")
MODELS = (
    *("lenet_A_B[_C...]", "mlp_A_B[_C...]", "conv2", "conv4", "conv6", "vgg16", "vgg19"),
    *("resnet20", "resnet_N (N = 8, 14, 20, ...)", "torchvision/<name>"),
)
#: Somebody's own network, data set, task or executor, named by where its function can be imported.
USER_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_NAMED = {"conv2", "conv4", "conv6", "vgg16", "vgg19"}
FULLY_CONNECTED = re.compile(r"(lenet|mlp)(_[1-9]\d{0,5})+")
_RESNET = re.compile(r"resnet_?([1-9]\d{0,3})")

Precision = Literal["fp32", "bf16"]
Initialization = Literal["kaiming_normal", "kaiming_uniform", "glorot_normal", "glorot_uniform", "orthogonal"]


class NormalizeSpec(Spec):
    """Per-channel normalisation ``(x - mean) / std`` of images scaled to [0, 1]."""

    mean: Floats
    std: Floats

    @model_validator(mode="after")
    def _one_each(self) -> "NormalizeSpec":
        if len(self.mean) != len(self.std) or not all(s > 0 for s in self.std):
            raise ValueError(
                f"mean {list(self.mean)} and std {list(self.std)} need one entry each per channel, std above 0"
            )
        return self


class AugmentSpec(Spec):
    """Random changes of each training image, drawn anew in every epoch from the seed.

    Attributes:
        crop: zero pixels added on each side before a crop back to the original size.
        flip: mirror half of the images left to right.
    """

    crop: Annotated[int, Field(ge=0, le=256)] = 0
    flip: bool = False


class DatasetSpec(Spec):
    """Which images, and how they are split.

    Attributes:
        name: one of `DATASETS`, or ``package.module:function``.
        path: for ``parquet``, the folder: absolute, or below the data directory.
        validation: number of training images held out for validation.
        split_seed: the seed of that split; not the seed of a run.
        normalize: null means the usual constants of a known data set, else those of its training images.
        augment: null means none.
        download: whether an absent data set may be fetched through torchvision.
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
        """What is read; the other fields say what is made of it."""
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
                f"path {self.path!r} does not go with dataset {self.name!r}: "
                "`parquet` needs the folder's path, no other takes one"
            )
        return self


class ModelSpec(Spec):
    """The network.

    Attributes:
        name: a known name, or ``package.module:function`` returning an ``nn.Module``. ``resnet_20`` is ``resnet20``.
        init: how the weights of convolutions and fully connected layers are drawn; null as the network's own code does.
    """

    name: str
    init: Initialization | None = None

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if resnet := _RESNET.fullmatch(name):
            depth = int(resnet[1])
            if depth < 8 or depth % 6 != 2:
                near = max(8, 6 * round((depth - 2) / 6) + 2)
                raise ValueError(f"{name!r}: a ResNet for CIFAR has 6n + 2 layers: 8, 14, 20, ...; give 'resnet{near}'")
            return f"resnet{depth}"
        known = name in _NAMED or FULLY_CONNECTED.fullmatch(name) or re.fullmatch(r"torchvision/\w+", name)
        if not known and not USER_FUNCTION.fullmatch(name):
            raise ValueError(unknown("model", name, [*MODELS, "package.module:function"]))
        return name


class OptimizerSpec(Spec):
    """Adam, or SGD with momentum (torch's definitions)."""

    name: Literal["adam", "sgd"]
    lr: Annotated[float, Field(gt=0.0)]
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0

    @model_validator(mode="after")
    def _momentum_is_for_sgd(self) -> "OptimizerSpec":
        if self.name == "adam" and self.momentum:
            raise ValueError(f"momentum {self.momentum} is for sgd; adam takes none")
        return self


class ScheduleSpec(Spec):
    """The learning rate by iteration.

    Attributes:
        name: ``constant``; ``step`` (times `gamma` at each milestone); ``cosine`` (to 0 at the end).
        milestones: iterations, or epochs as ``"80ep"``.
        gamma: the factor of ``step``.
        warmup: iterations (or ``"5ep"``) of linear growth from 0 to the full rate.
    """

    name: Literal["constant", "step", "cosine"] = "constant"
    milestones: Annotated[tuple[Duration, ...], FromList] = ()
    gamma: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    warmup: Duration = 0

    @field_validator("warmup")
    @classmethod
    def _warmup(cls, value: Duration) -> Duration:
        return check_duration(value)

    @field_validator("milestones")
    @classmethod
    def _milestones(cls, value: tuple[Duration, ...]) -> tuple[Duration, ...]:
        return tuple(check_duration(v) for v in value)

    @model_validator(mode="after")
    def _milestones_for_step(self) -> "ScheduleSpec":
        if (self.name == "step") != bool(self.milestones):
            raise ValueError(
                f"milestones {list(self.milestones)} do not go with schedule {self.name!r}: "
                "`step` needs some, no other takes any"
            )
        return self


class TrainingSpec(Spec):
    """How each level is trained.

    Attributes:
        batch_size: images per iteration; the last, smaller batch of an epoch is left out.
        iterations: optimizer updates of the dense training, or epochs as ``"20ep"``.
        evaluate_every: iterations between two points of the learning curve, or ``"1ep"``.
        precision: the arithmetic of forward and backward passes: ``fp32``, or ``bf16`` where torch's autocast takes
            it; weights, updates, masks and losses are fp32 in both.
        executor: how levels are trained: one of `EXECUTORS`, or ``package.module:function``; ``auto`` chooses for each
            level, by its settings alone.
    """

    optimizer: OptimizerSpec
    schedule: ScheduleSpec = ScheduleSpec()
    batch_size: PositiveInt
    iterations: Duration
    evaluate_every: Duration
    precision: Precision = "fp32"
    executor: str = "auto"

    @field_validator("executor")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in ("auto", *EXECUTORS) and not USER_FUNCTION.fullmatch(name):
            raise ValueError(unknown("executor", name, ["auto", *EXECUTORS, "package.module:function"]))
        return name

    @field_validator("iterations", "evaluate_every")
    @classmethod
    def _positive(cls, value: Duration) -> Duration:
        return check_positive(value)


def check_task(name: str) -> str:
    """The name of a task, if there can be one of that name."""
    if name not in TASKS and not USER_FUNCTION.fullmatch(name):
        raise ValueError(unknown("task", name, [*TASKS, "package.module:function"]))
    return name


class TrajectorySpec(Spec):
    """One IMP run: a configuration and a seed, and which controls are trained beside its tickets.

    Attributes:
        task: what networks are trained to do: one of `TASKS`, or ``package.module:function``.
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
                f"controls.kinds: {list(self.controls.kinds)} are controls of tickets, whose weights are rewound; "
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
                "pruning.retrain 'finetune' trains at the schedule's last learning rate, and training.schedule "
                "'cosine' ends at 0; give 'step' or 'constant', or retrain 'learning_rate'"
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
        """The same trajectory with every epoch written as iterations.

        Args:
            training_images: size of the training split, validation images taken out.

        Raises:
            SpecError: the batch is larger than the split; the rewind iteration is past the training, or early-bird
                longer than it.
        """
        training = self.training
        if training.batch_size > training_images:
            raise SpecError(
                f"training.batch_size: {training.batch_size} is more than the {training_images} training images; "
                "give at most that many"
            )
        epoch = training_images // training.batch_size
        resolved = training.model_copy(
            update={
                "iterations": resolve_duration(training.iterations, epoch),
                "evaluate_every": resolve_duration(training.evaluate_every, epoch),
                "schedule": training.schedule.model_copy(
                    update={
                        "milestones": tuple(resolve_duration(m, epoch) for m in training.schedule.milestones),
                        "warmup": resolve_duration(training.schedule.warmup, epoch),
                    }
                ),
            }
        )
        pruning = self.pruning
        if pruning.early_bird is not None:
            every = resolve_duration(pruning.early_bird.every, epoch)
            early_bird = pruning.early_bird.model_copy(update={"every": every})
            pruning = pruning.model_copy(update={"early_bird": early_bird})
        try:
            check_rewind(pruning.rewind_iteration, int(resolved.iterations))
            check_early_bird(pruning.early_bird, int(resolved.iterations))
        except ValueError as error:
            raise SpecError(str(error)) from None
        return self.model_copy(update={"training": resolved, "pruning": pruning})
