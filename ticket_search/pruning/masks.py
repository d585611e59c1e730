"""Masks: parameter name -> boolean tensor over a prunable parameter, True = kept.

A mask's names stand in the order in which the network registers its parameters; the last is the output layer.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

Mask = dict[str, Tensor]
Tensors = Mapping[str, Tensor]


def full_mask(weights: Tensors, names: Iterable[str]) -> Mask:
    """The mask of a dense network: every weight of the named tensors kept."""
    return {name: torch.ones_like(weights[name], dtype=torch.bool) for name in names}


def kept_weights(mask: Mask) -> int:
    """The integer that density, sparsity and compression are made from."""
    return sum(int(kept.sum()) for kept in mask.values())


def prunable_weights(mask: Mask) -> int:
    """How many weights the mask could remove."""
    return sum(kept.numel() for kept in mask.values())


def density(mask: Mask) -> float:
    """Kept over prunable weights, in (0, 1]."""
    return kept_weights(mask) / prunable_weights(mask)


def distance(one: Mask, other: Mask) -> float:
    """The fraction of the prunable weights that one mask keeps and the other does not (Hamming, normalised)."""
    differing = sum(int((kept != other[name]).sum()) for name, kept in one.items())
    return differing / prunable_weights(one)


def apply_mask(mask: Mask, weights: Tensors) -> dict[str, Tensor]:
    """New tensors: the weights where kept, +0.0 where not; tensors without a mask are copied."""
    return {
        name: torch.where(mask[name], value, torch.zeros_like(value)) if name in mask else value.clone()
        for name, value in weights.items()
    }


def shuffled(mask: Mask, generator: torch.Generator) -> Mask:
    """A mask that keeps as many weights of each tensor as `mask`, at random places."""
    return {
        name: kept.flatten()[torch.randperm(kept.numel(), generator=generator)].view_as(kept)
        for name, kept in mask.items()
    }


def pack(kept: Tensor) -> Tensor:
    """One bit a weight: uint8 [ceil(numel / 8)], the first weight in the highest bit."""
    return torch.from_numpy(np.packbits(kept.cpu().numpy()))


def unpack(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The boolean tensor of that shape from `pack`'s bytes."""
    count = int(np.prod(shape))
    return torch.from_numpy(np.unpackbits(bits.cpu().numpy(), count=count).astype(bool).reshape(shape))
