"""Strategies: where the weights to prune are taken from, given a score for each.

What all of them promise, exactly:

- of n survivors that compete, ``round(rate * n)`` are pruned (a half to the even integer);
- only survivors compete, and what is pruned stays pruned;
- the lowest scores go; among equal scores, those that come first, in the order of tensors and then of elements;
- every tensor keeps at least one weight: its best-scored survivor (of equal ones, the last) is never pruned.
"""

from collections.abc import Callable

import torch

from ticket_search.pruning.criteria import Scores
from ticket_search.pruning.masks import Mask
from ticket_search.spec.trajectory import Strategy


def prune_count(survivors: int, rate: float) -> int:
    """How many of the survivors to prune: 2 of 10 at 0.2."""
    return round(rate * survivors)


def layerwise(mask: Mask, scores: Scores, rate: float, output_layer_rate: float) -> Mask:
    """Each tensor prunes its own share; the last, the output layer, ``rate * output_layer_rate`` of it."""
    *_, output = mask
    rates = {name: rate * output_layer_rate if name == output else rate for name in mask}
    return {name: _prune({name: kept}, scores, rates[name])[name] for name, kept in mask.items()}


def global_(mask: Mask, scores: Scores, rate: float, output_layer_rate: float) -> Mask:
    """All survivors of all tensors compete on their scores."""
    del output_layer_rate
    return _prune(mask, scores, rate)


#: mask, scores, pruning rate, output layer's share of the rate -> the next mask.
STRATEGIES: dict[Strategy, Callable[[Mask, Scores, float, float], Mask]] = {"layerwise": layerwise, "global": global_}


def _prune(mask: Mask, scores: Scores, rate: float) -> Mask:
    kept = torch.cat([m.flatten() for m in mask.values()])
    score = torch.cat([_protect_best(scores[name], m).flatten() for name, m in mask.items()])
    survivors = kept.nonzero().squeeze(1)
    count = min(prune_count(len(survivors), rate), len(survivors) - len(mask))
    lowest = torch.sort(score[survivors], stable=True).indices[:count]
    kept[survivors[lowest]] = False
    parts = torch.split(kept, [m.numel() for m in mask.values()])
    return {name: part.view_as(m).clone() for part, (name, m) in zip(parts, mask.items(), strict=True)}


def _protect_best(score: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """The scores, with +inf at the tensor's best survivor (the last of equal ones)."""
    candidates = torch.where(kept, score, -torch.inf).flatten()
    best = candidates.numel() - 1 - int(candidates.flip(0).argmax())
    candidates[best] = torch.inf
    return candidates.view_as(score)
