"""Prune a trained level according to the trajectory's criterion, strategy and amount."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ticket_search.config.identity import derive_seed
from ticket_search.config.pruning import Criterion
from ticket_search.lottery.context import Context
from ticket_search.lottery.level import Level
from ticket_search.lottery.starts import Starts
from ticket_search.lottery.steps import Steps
from ticket_search.pruning.criteria import COMPARE_WITH_INITIAL, CRITERIA
from ticket_search.pruning.masks import Mask, apply_mask
from ticket_search.pruning.strategies import STRATEGIES, Amount, Group, in_rounds, prune
from ticket_search.training import saliency


class Pruner:
    """Prunes the levels of one trajectory.

    Args:
        context: the trajectory's context.
        starts: provides the weights that levels start from.
    """

    def __init__(self, context: Context, starts: Starts) -> None:
        self._context = context
        self._starts = starts

    def prune(self, level: Level) -> Steps[Mask]:
        """Return the mask after pruning a level; with a transferred ticket, return the ticket's mask instead."""
        if (given := self._starts.given) is not None:
            return {name: given.mask.get(name, kept) for name, kept in level.mask.items()}
        if level.next_mask is not None:
            return level.next_mask
        return (yield from self.next_mask(level.number, level.mask, level.final_weights))

    def leaves_a_mask(self, number: int) -> bool:
        """Return whether the settings allow level `number` to be pruned, whatever its density."""
        return number != self._context.pruning.last_target and self._starts.given is None

    def next_mask(self, number: int, mask: Mask, weights: Mapping[str, Tensor]) -> Steps[Mask]:
        """Return the mask after pruning level `number`, given its trained weights."""
        criterion, seed = self._context.pruning.criterion, self._seed(number)
        if criterion in saliency.CRITERIA:
            return (yield from self._by_saliency(mask, self._groups(number, mask), criterion, seed))
        initial: Mapping[str, Tensor] = {}
        if criterion in COMPARE_WITH_INITIAL:
            # Compare the trained weights of a rewound level with the weights that it started from. Compare those of any
            # other level with the rewind weights, even if the surviving weights will start from other values.
            rewound = number > 0 and self._context.pruning.retrain == "weights"
            initial = yield from (self._starts.ticket_weights(mask) if rewound else self._starts.rewind_weights())
        return self._by_values(number, mask, weights, initial)

    def mask_of_values(self, number: int, mask: Mask, weights: Mapping[str, Tensor]) -> Mask:
        """Return the same mask as `next_mask`, without yielding steps. The criterion must depend only on `weights`."""
        return self._by_values(number, mask, weights, {})

    def _by_values(self, number: int, mask: Mask, weights: Mapping[str, Tensor], initial: Mapping[str, Tensor]) -> Mask:
        # Score on the CPU even after training on a GPU, so that equal weights produce equal masks on every machine.
        final = {name: weights[name].cpu() for name in mask}
        generator = torch.Generator().manual_seed(self._seed(number))
        scores = CRITERIA[self._context.pruning.criterion](initial, final, generator)
        return prune(mask, scores, self._groups(number, mask))

    def _by_saliency(self, mask: Mask, groups: list[Group], criterion: Criterion, seed: int) -> Steps[Mask]:
        context = self._context
        weights = context.tied((yield from self._starts.kept_weights()))
        training, start = context.spec.training, context.pruning.rewind_iteration
        sample = context.task.sample(context.spec.seed, training, start)
        for step in in_rounds(mask, groups, saliency.ROUNDS[criterion]):
            masked = context.tied(apply_mask(mask, weights))
            scores = saliency.saliency(criterion, context.network, masked, mask, sample, seed)
            mask = prune(mask, scores, step)
        return mask

    def _groups(self, number: int, mask: Mask) -> list[Group]:
        pruning = self._context.pruning
        amount = Amount(
            rate=pruning.pruning_rate,
            target=pruning.target_densities[number] if pruning.target_densities else None,
            conv_layer_rate=pruning.conv_layer_rate,
            output_layer_rate=pruning.output_layer_rate,
        )
        return STRATEGIES[pruning.strategy](mask, amount)

    def _seed(self, number: int) -> int:
        return derive_seed(self._context.spec.seed, "prune", number)
