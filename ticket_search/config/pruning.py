"""The part of a specification that is about tickets: how networks are pruned and rewound, and the controls."""

import itertools
import re
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field, field_validator, model_validator

from ticket_search.config.base import FromList, Spec, as_tuple
from ticket_search.config.fields import Duration, Fraction, NonNegativeInt, PositiveInt, check_positive

Strategy = Literal["layerwise", "global"]
#: Scores of a weight's values, see `ticket_search.pruning.criteria`.
ValueCriterion = Literal[
    "magnitude", "random", "large_final", "magnitude_increase", "movement", "large_init", "small_final"
]
#: Scores that need the network at its rewind weights, see `ticket_search.training.saliency`.
NetworkCriterion = Literal["snip", "grasp", "synflow"]
Criterion = Literal[ValueCriterion, NetworkCriterion]
Control = Literal["random_reinit", "random_mask", "shuffled_mask"]
Retrain = Literal["weights", "learning_rate", "finetune"]
#: Criteria that look at nothing but the weights after training.
_OF_FINAL_VALUES = ("magnitude", "large_final", "small_final")


def _densities(value: object) -> object:
    """A number is the one-shot schedule to it."""
    return (value,) if isinstance(value, int | float) and not isinstance(value, bool) else as_tuple(value)


class EarlyBirdSpec(Spec):
    """When the dense training has shown which weights it will keep, and is ended (You et al. 2020, arXiv 1909.11957).

    Attributes:
        threshold: of the distance of two masks: the fraction of the prunable weights in which they differ.
        window: so many masks, of which the last must be nearer than the threshold to each of the others.
        every: between two masks: iterations, or epochs as ``"1ep"``.
    """

    threshold: Fraction = 0.1
    window: Annotated[int, Field(ge=2, le=1000)] = 5
    every: Duration = "1ep"

    @field_validator("every")
    @classmethod
    def _positive(cls, value: Duration) -> Duration:
        return check_positive(value)


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
        early_bird: ends level 0 as soon as the mask that pruning would draw stays as it is; null trains it to its end.
        ticket: the key of a ticket in the level store, whose mask level 1 has instead of one found here: it is the last
            level. ``ticket-search transfer`` puts tickets there. null prunes what is trained here.
        ticket_weights: what the kept weights of such a ticket start from: ``ticket``, its own; ``own``, the rewind
            weights of the dense network trained here.
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
                f"{ticket!r} is not the key of a ticket, 32 hexadecimal digits; "
                "of a file, `ticket-search transfer` makes the search"
            )
        return ticket

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
                    f"give pruning.{name} 1.0, or no target_densities"
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

    @model_validator(mode="after")
    def _early_bird_watches_weights(self) -> "PruningSpec":
        if self.early_bird is not None and self.criterion not in _OF_FINAL_VALUES:
            raise ValueError(
                f"early_bird compares the masks of weights as they are trained, and criterion {self.criterion!r} does "
                f"not look at those alone; give one of {', '.join(_OF_FINAL_VALUES)}, or early_bird null"
            )
        if self.early_bird is not None and self.retrain == "finetune":
            raise ValueError(
                "early_bird ends the dense training in the middle of its schedule, and retrain 'finetune' goes on at "
                "the schedule's end; give retrain 'learning_rate' to go on from the weights found"
            )
        return self

    @model_validator(mode="after")
    def _early_bird_can_wait(self) -> "PruningSpec":
        """Two masks that prune a share p differ in 2 min(p, 1 - p) of the weights at most."""
        if self.early_bird is None:
            return self
        name, share = "pruning_rate", self.pruning_rate
        if self.target_densities is not None:
            name, share = "target_densities", self.target_densities[0]
        most = 2 * min(share, 1 - share)
        if self.early_bird.threshold >= most:
            raise ValueError(
                f"early_bird.threshold {self.early_bird.threshold} is never reached: with {name} {share} two masks "
                f"differ in {most:.3g} of the weights at most; give a threshold below that"
            )
        return self

    @model_validator(mode="after")
    def _ticket_is_found_already(self) -> "PruningSpec":
        plain = {"target_densities": None, "retrain": "weights", "reinit_kept": "rewind", "reinit_pruned": "zero"}
        for name, value in (plain | {"early_bird": None}).items():
            if self.ticket is not None and getattr(self, name) != value:
                raise ValueError(
                    f"ticket {self.ticket!r} says what level 1 is, and {name} is about tickets found here; "
                    f"give {name} {'null' if value is None else repr(value)}, or ticket null"
                )
        if self.ticket is None and self.ticket_weights != "ticket":
            raise ValueError(f"ticket_weights {self.ticket_weights!r} is of a ticket, and ticket is null; leave it out")
        return self

    @property
    def last_level(self) -> int | None:
        """The number of the last level; None where the density alone decides."""
        lasts = (self.last_target, self.max_levels, None if self.ticket is None else 1)
        return min((last for last in lasts if last is not None), default=None)

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
        levels: whose tickets have controls; ``last`` means the last (of ``pruning.max_levels`` or
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


def check_rewind(rewind_iteration: int, iterations: int) -> None:
    """A rewind must leave at least one iteration to train."""
    if rewind_iteration >= iterations:
        raise ValueError(
            f"pruning.rewind_iteration: {rewind_iteration} is past the training of {iterations} iterations; "
            f"give 0 to {iterations - 1}"
        )


def check_early_bird(early_bird: EarlyBirdSpec | None, iterations: int) -> None:
    """The masks that early-bird compares must fit into the training; one in epochs is not looked at."""
    if early_bird is None or isinstance(early_bird.every, str):
        return
    needed = early_bird.window * early_bird.every
    if needed > iterations:
        raise ValueError(
            f"pruning.early_bird: {early_bird.window} masks, one every {early_bird.every} iterations, take {needed} "
            f"of the training's {iterations}; give a smaller window or every, or train longer"
        )
