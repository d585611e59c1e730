"""Settings for pruning, rewinding, early-bird stopping and the controls of tickets."""

import itertools
import math
import re
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field, field_validator, model_validator

from ticket_search.config.base import FromList, Spec, as_tuple
from ticket_search.config.fields import Fraction, NonNegativeInt, PositiveDuration, PositiveInt
from ticket_search.errors import quoted

Strategy = Literal["layerwise", "global"]
#: Criteria that score a weight by its values; see `ticket_search.pruning.criteria`.
ValueCriterion = Literal[
    "magnitude", "random", "large_final", "magnitude_increase", "movement", "large_init", "small_final"
]
#: Criteria that run the network with its rewind weights; see `ticket_search.training.saliency`.
NetworkCriterion = Literal["snip", "grasp", "synflow"]
Criterion = Literal[ValueCriterion, NetworkCriterion]
Control = Literal["random_reinit", "random_mask", "shuffled_mask"]
Retrain = Literal["weights", "learning_rate", "finetune"]
#: Criteria that depend only on the trained weights.
_OF_FINAL_VALUES = ("magnitude", "large_final", "small_final")
#: The maximum number of levels: about ten times the number needed to reach density 0.01 at a pruning rate of 0.005, the
#: smallest in use. Without a limit, a rate of 1e-12 would make the estimate of disk space loop over 5e12 levels.
MOST_LEVELS = 10_000


def _densities(value: object) -> object:
    """Turn a single number, the target of one-shot pruning, into a schedule with one level."""
    return (value,) if isinstance(value, int | float) and not isinstance(value, bool) else as_tuple(value)


class EarlyBirdSpec(Spec):
    """When to end level 0 early because its mask has stopped changing (You et al. 2020, arXiv 1909.11957).

    Attributes:
        threshold: two masks count as equal if they differ in less than this fraction of the prunable weights.
        window: the number of masks to compare; the last mask must count as equal to each of the others.
        every: the number of iterations between two masks, or of epochs as ``"1ep"``.
    """

    threshold: Fraction = 0.1
    window: Annotated[int, Field(ge=2, le=1000)] = 5
    every: PositiveDuration = "1ep"


class PruningSpec(Spec):
    """The ``pruning`` section: how a network is pruned and rewound, and when to stop.

    Attributes:
        pruning_rate: the fraction of the surviving weights that each level removes, in (0, 1).
        target_densities: the densities of levels 1, 2, ..., in decreasing order; they replace `pruning_rate` and
            `min_density`. A single number prunes to that density in one shot; null prunes each level by `pruning_rate`.
        strategy: ``layerwise`` (each tensor is pruned separately) or ``global`` (the weights of all tensors compete).
        criterion: how weights are scored; the weights with the lowest scores are pruned.
        rewind_iteration: k; surviving weights return to their values after k iterations of level 0.
        retrain: how to retrain after pruning (Renda et al. 2020): ``weights`` rewinds weights and schedule to k;
            ``learning_rate`` keeps the trained weights and rewinds the schedule; ``finetune`` keeps the trained weights
            and the schedule's last learning rate. All three train for the same number of iterations.
        reinit_kept: the initial values of kept weights: ``rewind``, their rewind weights; ``fresh``, another draw of
            the initialization, including biases and batch-norm statistics; ``sign``, the sign of the rewind weight
            times the standard deviation of the layer's initialization (Zhou et al. 2019).
        reinit_pruned: the values at which pruned weights are held: ``zero``, or ``initial``, their rewind weights (Zhou
            et al. 2019).
        conv_layer_rate: the pruning rate of convolutions as a fraction of `pruning_rate`, in (0, 1]; layerwise only.
        output_layer_rate: the pruning rate of the output layer as a fraction of `pruning_rate`, in [0, 1]. Layerwise
            only, except that 0 keeps the output layer dense under any strategy.
        min_density: levels below this density are not trained.
        max_levels: the number of the last level to train; null sets no limit.
        early_bird: when to end level 0 early because its pruning mask has stopped changing; null trains level 0 in
            full.
        ticket: the key of a ticket that ``ticket-search transfer`` has put into the level store. Level 1 uses its mask
            and is the last level. null prunes the network that this trajectory trains.
        ticket_weights: the initial values of that ticket's kept weights: ``ticket``, its own rewind weights; ``own``,
            the rewind weights of the dense network that this trajectory trains.
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
    early_bird: EarlyBirdSpec | None = None
    ticket: str | None = None
    ticket_weights: Literal["ticket", "own"] = "ticket"

    @field_validator("ticket")
    @classmethod
    def _key(cls, ticket: str | None) -> str | None:
        if ticket is not None and not re.fullmatch("[0-9a-f]{32}", ticket):
            raise ValueError(
                f"{quoted(ticket)} is not a ticket key (32 hexadecimal digits); "
                "to search with a ticket file, use `ticket-search transfer`"
            )
        return ticket

    @field_validator("target_densities")
    @classmethod
    def _decreasing(cls, densities: tuple[float, ...] | None) -> tuple[float, ...] | None:
        for before, after in itertools.pairwise(densities or ()):
            if after >= before:
                raise ValueError(
                    f"{quoted(list(densities or ()))} does not decrease: {after} follows {before}; "
                    "give decreasing densities, one for each level"
                )
        return densities

    @model_validator(mode="after")
    def _levels_are_bounded(self) -> "PruningSpec":
        if self.pruned_levels > MOST_LEVELS:
            raise ValueError(
                f"pruning_rate {self.pruning_rate} needs {self.pruned_levels} levels to reach density "
                f"{self.min_density}, more than {MOST_LEVELS}; raise pruning_rate or min_density, "
                "or set max_levels"
            )
        return self

    @model_validator(mode="after")
    def _targets_are_of_every_layer(self) -> "PruningSpec":
        for name in ("conv_layer_rate", "output_layer_rate"):
            if self.target_densities is not None and getattr(self, name) != 1.0:
                raise ValueError(
                    f"{name} {getattr(self, name)} scales pruning_rate, which has no effect with target_densities; "
                    f"set pruning.{name} to 1.0, or omit target_densities"
                )
        return self

    @model_validator(mode="after")
    def _retraining_starts_from_trained_weights(self) -> "PruningSpec":
        fitting = {"reinit_kept": ("rewind",), "reinit_pruned": ("zero",), "criterion": get_args(ValueCriterion)}
        for name, values in fitting.items():
            value = getattr(self, name)
            if self.retrain != "weights" and value not in values:
                raise ValueError(
                    f"{name} {value!r} needs untrained weights, but retrain {self.retrain!r} starts from trained "
                    f"weights; set {name} to {values[0]!r}, or retrain to 'weights'"
                )
        return self

    @model_validator(mode="after")
    def _early_bird_watches_weights(self) -> "PruningSpec":
        if self.early_bird is not None and self.criterion not in _OF_FINAL_VALUES:
            raise ValueError(
                "early_bird compares masks computed from the weights during training, but criterion "
                f"{self.criterion!r} needs more than the weights; "
                f"set criterion to {' or '.join(map(repr, _OF_FINAL_VALUES))}, or early_bird to null"
            )
        if self.early_bird is not None and self.retrain == "finetune":
            raise ValueError(
                "early_bird ends level 0 in the middle of its schedule, but retrain 'finetune' starts at "
                "the schedule's end; set retrain to 'learning_rate' to keep the trained weights"
            )
        return self

    @model_validator(mode="after")
    def _early_bird_can_wait(self) -> "PruningSpec":
        # Two masks that each prune a share p differ in at most 2 min(p, 1 - p) of the weights.
        if self.early_bird is None:
            return self
        name, share = "pruning_rate", self.pruning_rate
        if self.target_densities is not None:
            name, share = "target_densities", self.target_densities[0]
        most = 2 * min(share, 1 - share)
        if self.early_bird.threshold >= most:
            raise ValueError(
                f"early_bird.threshold {self.early_bird.threshold} would end level 0 at the first comparison: with "
                f"{name} {share}, two masks differ in at most {most:.3g} of the weights; choose a threshold below that"
            )
        return self

    @model_validator(mode="after")
    def _ticket_is_found_already(self) -> "PruningSpec":
        plain = {"target_densities": None, "retrain": "weights", "reinit_kept": "rewind", "reinit_pruned": "zero"}
        for name, value in (plain | {"early_bird": None}).items():
            if self.ticket is not None and getattr(self, name) != value:
                raise ValueError(
                    f"ticket {self.ticket!r} determines level 1, so {name} has no effect; "
                    f"set {name} to {'null' if value is None else repr(value)}, or ticket to null"
                )
        if self.ticket is None and self.ticket_weights != "ticket":
            raise ValueError(
                f"ticket_weights {self.ticket_weights!r} needs a ticket, but ticket is null; omit ticket_weights"
            )
        return self

    @property
    def last_level(self) -> int | None:
        """The number of the last level; None if only `min_density` limits the number of levels."""
        lasts = (self.last_target, self.max_levels, None if self.ticket is None else 1)
        return min((last for last in lasts if last is not None), default=None)

    @property
    def last_target(self) -> int | None:
        """The number of the last level with a target density; None if there are no target densities."""
        return None if self.target_densities is None else len(self.target_densities)

    @property
    def pruned_levels(self) -> int:
        """The number of levels after level 0, assuming that each level removes exactly its share of the weights."""
        if self.target_densities is not None or self.ticket is not None:
            return self.last_level or 0
        # Use log1p, because 1 - 1e-17 is 1.0 in floating point, and log(1.0) is 0.
        reach = math.log(self.min_density) / math.log1p(-self.pruning_rate) + 1e-9
        return math.floor(min(reach, 10**18 if self.max_levels is None else self.max_levels))


class ControlsSpec(Spec):
    """The ``controls`` section: equally sparse networks to compare each ticket with.

    Each control has the ticket's density in every layer and is trained exactly like the ticket.

    Attributes:
        kinds: any of ``random_reinit`` (the ticket's mask on a newly initialized network), ``random_mask`` (the
            ticket's weights under a random mask) and ``shuffled_mask`` (the ticket's weights under its mask, shuffled
            within each layer). The last two are drawn from the same distribution; the literature uses both names.
        draws: the number of controls of each kind to train at each level.
        levels: the levels that get controls. ``last`` means the last level (according to ``pruning.max_levels`` or
            ``target_densities``); null means every level from 1 on.
    """

    kinds: Annotated[tuple[Control, ...], FromList] = ()
    draws: Annotated[int, Field(ge=1, le=10_000)] = 1
    levels: Annotated[tuple[PositiveInt, ...], FromList, Field(min_length=1)] | Literal["last"] | None = None

    @field_validator("kinds", "levels")
    @classmethod
    def _distinct(cls, values: tuple[object, ...] | str | None) -> tuple[object, ...] | str | None:
        if isinstance(values, tuple) and len(set(values)) != len(values):
            raise ValueError(f"{quoted(list(values))} contains duplicates; give each value only once")
        return values

    def of(self, level: int, last: int | None) -> list[tuple[Control, int]]:
        """Return the kind and the draw of each control at a level; `last` is the last level, or None if unknown."""
        count = self.count(level, last)
        return [(kind, draw) for kind in self.kinds for draw in range(self.draws)] if count else []

    def count(self, level: int, last: int | None) -> int:
        """Return the number of controls at a level; see `of`."""
        levels = (last,) if self.levels == "last" else self.levels
        if level == 0 or (levels is not None and level not in levels):
            return 0
        return len(self.kinds) * self.draws


def check_rewind(rewind_iteration: int, iterations: int) -> None:
    """Check that at least one iteration of training follows the rewind iteration.

    Raises:
        ValueError: no iteration follows it.
    """
    if rewind_iteration >= iterations:
        raise ValueError(
            f"pruning.rewind_iteration: {rewind_iteration} is not before the end of training at iteration {iterations}"
            f"; give 0 to {iterations - 1}"
        )


def check_early_bird(early_bird: EarlyBirdSpec | None, iterations: int) -> None:
    """Check that level 0 is long enough for a window of early-bird masks; an interval in epochs is not checked.

    Raises:
        ValueError: the window needs more iterations than level 0 has.
    """
    if early_bird is None or isinstance(early_bird.every, str):
        return
    needed = early_bird.window * early_bird.every
    if needed > iterations:
        raise ValueError(
            f"pruning.early_bird: {early_bird.window} masks, one every {early_bird.every} iterations, need {needed} "
            f"iterations, but level 0 has {iterations}; give a smaller window or interval, or train longer"
        )
