"""Strategies: where the weights to prune are taken from, given a score for each.

A strategy divides the prunable tensors into groups; the weights of a group compete with each other. Then, exactly:

- at a pruning rate, ``round(rate * n)`` of a group's n survivors are pruned (a half to the even integer); towards a
  target density, ``round(target * size)`` of its weights are kept;
- only survivors compete, and what is pruned stays pruned;
- the lowest scores go; among equal scores, those that come first, in the order of tensors and then of elements;
- every tensor keeps at least one weight: its best-scored survivor (of equal ones, the last) is never pruned.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from ticket_search.config.pruning import Strategy
from ticket_search.pruning.criteria import Scores
from ticket_search.pruning.masks import Mask

_DIMENSIONS_OF_A_MATRIX = 2


@dataclass(frozen=True, kw_only=True)
class Group:
    """Tensors whose weights compete.

    Attributes:
        names: of the tensors.
        keep: how many of their weights survive.
    """

    names: tuple[str, ...]
    keep: int


@dataclass(frozen=True, kw_only=True)
class Amount:
    """How much a level prunes.

    Attributes:
        rate: the fraction of the survivors to prune; not looked at where there is a target.
        target: the density to reach, over all weights of a group; None prunes at the rate.
        conv_layer_rate, output_layer_rate: shares of the rate, of convolutions and of the last tensor; 0 leaves that
            whole, whatever the strategy. Towards a target there are none.
    """

    rate: float
    target: float | None = None
    conv_layer_rate: float = 1.0
    output_layer_rate: float = 1.0


def prune_count(survivors: int, rate: float) -> int:
    """How many of the survivors to prune: 2 of 10 at 0.2."""
    return round(rate * survivors)


def layerwise(mask: Mask, amount: Amount) -> list[Group]:
    """Each tensor prunes its own share: convolutions `conv_layer_rate` of it, the last tensor `output_layer_rate`."""
    *_, output = mask

    def share(name: str) -> float:
        if name == output:
            return amount.output_layer_rate
        return amount.conv_layer_rate if mask[name].ndim > _DIMENSIONS_OF_A_MATRIX else 1.0

    return [_group(mask, (name,), amount, share(name)) for name in mask]


def global_(mask: Mask, amount: Amount) -> list[Group]:
    """All survivors of all tensors compete; but not the last tensor's where `output_layer_rate` is 0."""
    *hidden, output = mask
    names = hidden if amount.output_layer_rate == 0 else [*hidden, output]
    return [_group(mask, tuple(names), amount, 1.0)] if names else []


#: A mask and how much to prune -> which weights compete, and how many of them survive.
STRATEGIES: dict[Strategy, Callable[[Mask, Amount], list[Group]]] = {"layerwise": layerwise, "global": global_}


def prune(mask: Mask, scores: Scores, groups: Sequence[Group]) -> Mask:
    """The mask that is left when each group keeps its best-scored survivors; a tensor of no group stays as it is."""
    pruned = {name: kept.clone() for name, kept in mask.items()}
    for group in groups:
        pruned |= _prune({name: mask[name] for name in group.names}, scores, group.keep)
    return pruned


def in_rounds(mask: Mask, groups: Sequence[Group], rounds: int) -> list[list[Group]]:
    """The way from a mask to what is to be kept in steps of equal ratio, as SynFlow takes (Tanaka et al. 2020)."""
    start = {group.names: _survivors(mask, group.names) for group in groups}

    def keep(group: Group, done: float) -> int:
        survivors = start[group.names]
        return round(survivors * (group.keep / survivors) ** done) if group.keep < survivors else survivors

    return [[replace(group, keep=keep(group, i / rounds)) for group in groups] for i in range(1, rounds + 1)]


def _group(mask: Mask, names: tuple[str, ...], amount: Amount, share: float) -> Group:
    survivors = _survivors(mask, names)
    if amount.target is None:
        keep = survivors - prune_count(survivors, amount.rate * share)
    else:
        keep = round(amount.target * sum(mask[name].numel() for name in names))
    return Group(names=names, keep=min(survivors, max(keep, len(names))))


def _survivors(mask: Mask, names: Sequence[str]) -> int:
    return sum(int(mask[name].sum()) for name in names)


def _prune(mask: Mask, scores: Scores, keep: int) -> Mask:
    kept = torch.cat([m.flatten() for m in mask.values()])
    score = torch.cat([_protect_best(scores[name], m).flatten() for name, m in mask.items()])
    survivors = kept.nonzero().squeeze(1)
    count = len(survivors) - max(keep, len(mask))
    if count > 0:
        competing = score[survivors]
        # A tenth of the time of sorting: 15 million scores take 0.2 s.
        cut = competing.kthvalue(count).values
        lowest = competing < cut
        lowest[(competing == cut).nonzero().squeeze(1)[: count - int(lowest.sum())]] = True
        kept[survivors[lowest]] = False
    parts = torch.split(kept, [m.numel() for m in mask.values()])
    return {name: part.view_as(m).clone() for part, (name, m) in zip(parts, mask.items(), strict=True)}


def _protect_best(score: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """The scores, with +inf at the tensor's best survivor (the last of equal ones)."""
    candidates = torch.where(kept, score, -torch.inf).flatten()
    best = candidates.numel() - 1 - int(candidates.flip(0).argmax())
    candidates[best] = torch.inf
    return candidates.view_as(score)
