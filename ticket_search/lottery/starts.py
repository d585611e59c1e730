"""The initial weights of levels: rewound, redrawn or trained weights, or the weights of a transferred ticket."""

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from ticket_search.lottery.context import Context
from ticket_search.lottery.level import Level
from ticket_search.lottery.steps import Steps
from ticket_search.lottery.ticket import Ticket, ticket_in_store
from ticket_search.lottery.trainer import Trainer
from ticket_search.pruning.masks import Mask, apply_mask
from ticket_search.store.level_store import Entry
from ticket_search.training.request import LevelInputs


class Starts:
    """Computes the training inputs for the levels of one trajectory.

    Args:
        context: the trajectory's context.
        trainer: loads or trains the rewind weights.
    """

    def __init__(self, context: Context, trainer: Trainer) -> None:
        self._context = context
        self._trainer = trainer

    def after(self, parent: Level, mask: Mask) -> Steps[LevelInputs]:
        """Return the inputs of the level after `parent`: weights, position in the schedule and data order."""
        context, retrain = self._context, self._context.pruning.retrain
        if retrain == "weights":
            return (yield from self.rewound(mask))
        weights = context.tied(apply_mask(mask, parent.final_weights))
        iterations, k = int(context.spec.training.iterations), context.pruning.rewind_iteration
        shift = (parent.number + 1) * (iterations - k) if retrain == "finetune" else 0
        return self._inputs(weights, mask, shift)

    def rewound(self, mask: Mask) -> Steps[LevelInputs]:
        """Return the training inputs of a rewound ticket, which is trained from `rewind_iteration` on."""
        return self._inputs((yield from self.ticket_weights(mask)), mask)

    def redrawn(self, mask: Mask, number: int) -> Steps[LevelInputs]:
        """Return the inputs of a ticket whose kept weights come from initialization `number`."""
        weights = yield from self._placed(mask, self._context.draw(number))
        return self._inputs(weights, mask)

    def ticket_weights(self, mask: Mask) -> Steps[dict[str, Tensor]]:
        """Return the initial weights of a ticket.

        By default, kept weights and unprunable tensors have their values after `rewind_iteration` iterations, and
        pruned weights are 0; `reinit_kept` and `reinit_pruned` change this.
        """
        kept = yield from self.kept_weights()
        return (yield from self._placed(mask, kept))

    def kept_weights(self) -> Steps[dict[str, Tensor]]:
        """Return the initial values of the kept weights."""
        context = self._context
        if context.pruning.reinit_kept == "fresh":
            return context.draw(1)
        rewind = yield from self.rewind_weights()
        if self.given is not None and context.pruning.ticket_weights == "ticket":
            return {name: self.given.weights.get(name, own) for name, own in rewind.items()}
        if context.pruning.reinit_kept == "rewind":
            return dict(rewind)
        return {n: _signed(w, context.initial[n].cpu()) if n in context.prunable else w for n, w in rewind.items()}

    @cached_property
    def given(self) -> Ticket | None:
        """The transferred ticket, if any, without tensors that do not fit, such as an output layer for other classes.

        Raises:
            SpecError: the ticket is not in the store, or belongs to another network or other inputs.
        """
        context = self._context
        if context.pruning.ticket is None:
            return None
        ticket = ticket_in_store(
            context.pruning.ticket, self._trainer.store.load, context.spec.model, context.task.inputs
        )
        return ticket.cut_to({name: value.shape for name, value in context.initial.items()}, context.task.inputs)

    def rewind_weights(self) -> Steps[Mapping[str, Tensor]]:
        """Return every parameter and buffer after `rewind_iteration` iterations of level 0, on the CPU."""
        context, key = self._context, self._context.rewind_key
        iteration = context.pruning.rewind_iteration

        def train_again() -> Steps[Entry]:
            """Repeat the first iterations of level 0, because the rewind weights were not kept when it was trained."""
            if iteration == 0:
                return weights_entry(context.initial, 0)
            start = LevelInputs(weights=context.initial, mask={}, seed=context.spec.seed, stop=iteration)
            outputs = yield from self._trainer.train(start, key)
            return weights_entry(outputs.weights, iteration)

        entry, _ = yield from self._trainer.found_or_computed(key, train_again)
        return entry.tensors

    def _inputs(self, weights: Mapping[str, Tensor], mask: Mask, shift: int = 0) -> LevelInputs:
        k, seed = self._context.pruning.rewind_iteration, self._context.spec.seed
        return LevelInputs(weights=weights, mask=mask, seed=seed, start=k, shift=shift)

    def _placed(self, mask: Mask, kept: Mapping[str, Tensor]) -> Steps[dict[str, Tensor]]:
        """Return the initial values of all weights.

        Weights that the mask keeps have their values in `kept`; the others have the values at which pruned weights are
        held.
        """
        if self._context.pruning.reinit_pruned == "zero":
            return self._context.tied(apply_mask(mask, kept))
        held = yield from self.rewind_weights()
        return self._context.tied({n: torch.where(mask[n], w, held[n]) if n in mask else w for n, w in kept.items()})


def weights_entry(weights: Mapping[str, Tensor], iteration: int) -> Entry:
    """Return the store entry for rewind weights."""
    return Entry(record={"iteration": iteration}, tensors={n: w.cpu() for n, w in weights.items()})


def _signed(weights: Tensor, initial: Tensor) -> Tensor:
    """Return the sign of each weight times the standard deviation of its layer's initialization."""
    return weights.sign() * initial.std(correction=0)
