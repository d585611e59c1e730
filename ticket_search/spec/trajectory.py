"""One point of a search: everything that decides what a trajectory computes."""

import itertools
import re
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field, field_validator, model_validator

from ticket_search.errors import SpecError
from ticket_search.spec.base import Floats, FromList, Spec, as_tuple, unknown

DATASETS = ("digits", "mnist", "fashion_mnist", "cifar10", "parquet")
MODELS = (
    *("lenet_A_B[_C...]", "mlp_A_B[_C...]", "conv2", "conv4", "conv6", "vgg16", "vgg19"),
    *("resnet20", "resnet_N (N = 8, 14, 20, ...)", "torchvision/<name>"),
)
#: Somebody's own network or data set, named by where its function can be imported.
USER_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_NAMED = {"conv2", "conv4", "conv6", "vgg16", "vgg19"}
FULLY_CONNECTED = re.compile(r"(lenet|mlp)(_[1-9]\d{0,5})+")
_RESNET = re.compile(r"resnet_?([1-9]\d{0,3})")
_EPOCHS = re.compile(r"([1-9]\d{0,8})ep")

Strategy = Literal["layerwise", "global"]
#: Scores of a weight's values, see `ticket_search.pruning.criteria`.
ValueCriterion = Literal[
    "magnitude", "random", "large_final", "magnitude_increase", "movement", "large_init", "small_final"
]
#: Scores that need the network at its rewind weights, see `ticket_search.training.saliency`.
NetworkCriterion = Literal["snip", "grasp", "synflow"]
Criterion = Literal[ValueCriterion, NetworkCriterion]
Control = Literal["random_reinit", "random_mask", "shuffled_mask"]
Precision = Literal["fp32", "bf16"]
Retrain = Literal["weights", "learning_rate", "finetune"]
Initialization = Literal["kaiming_normal", "kaiming_uniform", "glorot_normal", "glorot_uniform", "orthogonal"]
Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]
PositiveInt = Annotated[int, Field(ge=1, le=2**31 - 1)]
NonNegativeInt = Annotated[int, Field(ge=0, le=2**53)]
#: A column of the tables holds it as int64.
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]


def _duration(value: int | str) -> int | str:
    if isinstance(value, str) and not _EPOCHS.fullmatch(value):
        raise ValueError(f"{value!r} is not a length of training: give iterations (20000) or epochs ('20ep')")
    if isinstance(value, int) and value < 0:
        raise ValueError(f"{value} is not a length of training: give 0 or more iterations")
    return value


def resolve_duration(value: int | str, iterations_per_epoch: int) -> int:
    """Iterations in a duration such as ``20000`` or ``"20ep"``."""
    if isinstance(value, int):
        return value
    return int(value.removesuffix("ep")) * iterations_per_epoch


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


Duration = int | str


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
        return _duration(value)

    @field_validator("milestones")
    @classmethod
    def _milestones(cls, value: tuple[Duration, ...]) -> tuple[Duration, ...]:
        return tuple(_duration(v) for v in value)

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
    """

    optimizer: OptimizerSpec
    schedule: ScheduleSpec = ScheduleSpec()
    batch_size: PositiveInt
    iterations: Duration
    evaluate_every: Duration
    precision: Precision = "fp32"

    @field_validator("iterations", "evaluate_every")
    @classmethod
    def _positive(cls, value: Duration) -> Duration:
        if isinstance(value, int) and value < 1:
            raise ValueError(
                f"{value} is not a length of training: give at least one iteration (20000) or epoch ('1ep')"
            )
        return _duration(value)


def _densities(value: object) -> object:
    """A number is the one-shot schedule to it."""
    return (value,) if isinstance(value, int | float) and not isinstance(value, bool) else as_tuple(value)


class PruningSpec(Spec):
    """The ``trajectory`` section: how a network is pruned and rewound, and when to stop.

    Attributes:
        pruning_rate: fraction of the surviving weights removed per level, in (0, 1).
        target_densities: the density of each level from 1 on, decreasing, instead of `pruning_rate` and `min_density`;
            a number prunes to it in one shot. null prunes iteratively at the rate.
        strategy: ``layerwise`` (each tensor prunes its own share) or ``global`` (all tensors compete).
        criterion: the score; the lowest go.
        rewind_iteration: k: survivors return to their values after k iterations of the dense training.
        retrain: how a level goes on after pruning (Renda et al. 2020): ``weights`` rewinds weights and schedule to k;
            ``learning_rate`` keeps the trained weights and rewinds the schedule; ``finetune`` keeps both, and trains as
            many iterations at the last learning rate.
        reinit_kept: what kept weights start from: ``rewind``, their rewind weights; ``fresh``, another draw of the
            initialization, biases and statistics included; ``sign``, the sign of the rewind weight times the standard
            deviation of the layer's initialization (Zhou et al. 2019).
        reinit_pruned: what pruned weights are held at: ``zero``, or ``initial``, their rewind weights (Zhou et al.).
        conv_layer_rate: the convolutions' pruning rate as a fraction of the others', in (0, 1]; layerwise only.
        output_layer_rate: the output layer's pruning rate as a fraction of the others', in [0, 1]; layerwise, but for
            0, which leaves the output layer whole under any strategy.
        min_density: no level below this density is trained.
        max_levels: no level above this number is trained; null means no such bound.
    """

    pruning_rate: Fraction = 0.2
    target_densities: Annotated[tuple[Fraction, ...], BeforeValidator(_densities), Field(min_length=1)] | None = None
    strategy: Strategy = "layerwise"
    criterion: Criterion = "magnitude"
    rewind_iteration: NonNegativeInt = 0
    retrain: Retrain = "weights"
    reinit_kept: Literal["rewind", "fresh", "sign"] = "rewind"
    reinit_pruned: Literal["zero", "initial"] = "zero"
    conv_layer_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    output_layer_rate: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    min_density: Fraction = 0.01
    max_levels: PositiveInt | None = None

    @field_validator("target_densities")
    @classmethod
    def _decreasing(cls, densities: tuple[float, ...] | None) -> tuple[float, ...] | None:
        for before, after in itertools.pairwise(densities or ()):
            if after >= before:
                raise ValueError(
                    f"{list(densities or ())} does not decrease: {after} follows {before}; "
                    "give the density of each level, each less than the one before"
                )
        return densities

    @model_validator(mode="after")
    def _targets_are_of_every_layer(self) -> "PruningSpec":
        for name in ("conv_layer_rate", "output_layer_rate"):
            if self.target_densities is not None and getattr(self, name) != 1.0:
                raise ValueError(
                    f"{name} {getattr(self, name)} is a share of pruning_rate, which target_densities replace; "
                    f"give trajectory.{name} 1.0, or no target_densities"
                )
        return self

    @model_validator(mode="after")
    def _trained_weights_are_gone_on_from(self) -> "PruningSpec":
        fitting = {"reinit_kept": ("rewind",), "reinit_pruned": ("zero",), "criterion": get_args(ValueCriterion)}
        for name, values in fitting.items():
            value = getattr(self, name)
            if self.retrain != "weights" and value not in values:
                raise ValueError(
                    f"{name} {value!r} is about weights that are not trained yet, and retrain {self.retrain!r} goes on "
                    f"from trained ones; give {name} {values[0]!r}, or retrain 'weights'"
                )
        return self

    @property
    def last_level(self) -> int | None:
        """The number of the last level; None where the density alone decides."""
        return min((last for last in (self.last_target, self.max_levels) if last is not None), default=None)

    @property
    def last_target(self) -> int | None:
        """The number of the last level that has a target density; None without targets."""
        return None if self.target_densities is None else len(self.target_densities)


class ControlsSpec(Spec):
    """What is trained beside the tickets, to tell what is due to them from what any sparse network does.

    Each has the ticket's density in every layer, and is trained exactly as the ticket.

    Attributes:
        kinds: ``random_reinit`` (the ticket's mask, the network initialized anew), ``random_mask`` (the ticket's
            weights under a mask drawn at random) and ``shuffled_mask`` (under the ticket's mask, shuffled within each
            layer). The last two have the same distribution; both names are in use.
        draws: of each kind, at each level.
        levels: whose tickets have controls; ``last`` means the last (of ``trajectory.max_levels`` or
            ``target_densities``), null every level from 1 on.
    """

    kinds: Annotated[tuple[Control, ...], FromList] = ()
    draws: PositiveInt = 1
    levels: Annotated[tuple[PositiveInt, ...], FromList, Field(min_length=1)] | Literal["last"] | None = None

    @field_validator("kinds", "levels")
    @classmethod
    def _distinct(cls, values: tuple[object, ...] | str | None) -> tuple[object, ...] | str | None:
        if isinstance(values, tuple) and len(set(values)) != len(values):
            raise ValueError(f"{list(values)} names one twice; give each once")
        return values

    def of(self, level: int, last: int | None) -> list[tuple[Control, int]]:
        """The kind and the draw of each control at a level, where `last` is the last one, if that is known."""
        levels = (last,) if self.levels == "last" else self.levels
        if level == 0 or (levels is not None and level not in levels):
            return []
        return [(kind, draw) for kind in self.kinds for draw in range(self.draws)]


class TrajectorySpec(Spec):
    """One IMP run: a configuration and a seed, and which controls are trained beside its tickets."""

    dataset: DatasetSpec
    model: ModelSpec
    training: TrainingSpec
    trajectory: PruningSpec = PruningSpec()
    controls: ControlsSpec = ControlsSpec()
    seed: Seed

    @model_validator(mode="after")
    def _controls_of_tickets(self) -> "TrajectorySpec":
        if self.controls.kinds and self.trajectory.retrain != "weights":
            raise ValueError(
                f"controls.kinds: {list(self.controls.kinds)} are controls of tickets, whose weights are rewound; "
                f"with trajectory.retrain {self.trajectory.retrain!r} give []"
            )
        last = self.trajectory.last_level
        levels = self.controls.levels
        if self.controls.kinds and levels == "last" and last is None:
            raise ValueError("controls.levels: 'last' needs trajectory.max_levels or trajectory.target_densities")
        beyond = [level for level in levels or () if last is not None and isinstance(level, int) and level > last]
        if self.controls.kinds and beyond:
            raise ValueError(f"controls.levels: {beyond[0]} is above the last level, {last}; give 1 to {last}")
        return self

    @model_validator(mode="after")
    def _fine_tuning_has_a_rate(self) -> "TrajectorySpec":
        if self.trajectory.retrain == "finetune" and self.training.schedule.name == "cosine":
            raise ValueError(
                "trajectory.retrain 'finetune' trains at the schedule's last learning rate, and training.schedule "
                "'cosine' ends at 0; give 'step' or 'constant', or retrain 'learning_rate'"
            )
        return self

    @model_validator(mode="after")
    def _rewind_within_training(self) -> "TrajectorySpec":
        iterations = self.training.iterations
        if isinstance(iterations, int):
            check_rewind(self.trajectory.rewind_iteration, iterations)
        return self

    def resolve(self, training_images: int) -> "TrajectorySpec":
        """The same trajectory with every epoch written as iterations.

        Args:
            training_images: size of the training split, validation images taken out.

        Raises:
            SpecError: the batch is larger than the split, or the rewind iteration is past the training.
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
        try:
            check_rewind(self.trajectory.rewind_iteration, int(resolved.iterations))
        except ValueError as error:
            raise SpecError(str(error)) from None
        return self.model_copy(update={"training": resolved})


def check_rewind(rewind_iteration: int, iterations: int) -> None:
    """A rewind must leave at least one iteration to train."""
    if rewind_iteration >= iterations:
        raise ValueError(
            f"trajectory.rewind_iteration: {rewind_iteration} is past the training of {iterations} iterations; "
            f"give 0 to {iterations - 1}"
        )
