"""Masks. A mask maps the name of each prunable parameter to a boolean tensor, which is True where a weight is kept.

The names are in the order in which the network registers its parameters, except that the output layer's name is last.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

Mask = dict[str, Tensor]
Tensors = Mapping[str, Tensor]


def full_mask(weights: Tensors, names: Iterable[str]) -> Mask:
    """Return the mask of a dense network, which keeps every weight of the named tensors."""
    return {name: torch.ones_like(weights[name], dtype=torch.bool) for name in names}


def kept_weights(mask: Mask) -> int:
    """Return the number of kept weights, from which density, sparsity and compression are computed."""
    return sum(int(kept.sum()) for kept in mask.values())


def prunable_weights(mask: Mask) -> int:
    """Return the total number of prunable weights, whether kept or pruned."""
    return sum(kept.numel() for kept in mask.values())


def density(mask: Mask) -> float:
    """Return the fraction of prunable weights that are kept, in (0, 1]."""
    return kept_weights(mask) / prunable_weights(mask)


def distance(one: Mask, other: Mask) -> float:
    """Return the fraction of prunable weights in which two masks differ: the normalized Hamming distance."""
    differing = sum(int((kept != other[name]).sum()) for name, kept in one.items())
    return differing / prunable_weights(one)


def apply_mask(mask: Mask, weights: Tensors) -> dict[str, Tensor]:
    """Return copies of the tensors, with +0.0 for every pruned weight; tensors without a mask are copied unchanged."""
    return {
        name: torch.where(mask[name], value, torch.zeros_like(value)) if name in mask else value.clone()
        for name, value in weights.items()
    }


def shuffled(mask: Mask, generator: torch.Generator) -> Mask:
    """Return a mask that keeps as many weights of each tensor as `mask` does, but at random positions."""
    return {
        name: kept.flatten()[torch.randperm(kept.numel(), generator=generator)].view_as(kept)
        for name, kept in mask.items()
    }


def pack(kept: Tensor) -> Tensor:
    """Pack a boolean tensor into uint8 ``[ceil(numel / 8)]``, one bit per weight, the first in the highest bit."""
    return torch.from_numpy(np.packbits(kept.cpu().numpy()))


def unpack(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the boolean tensor of the given shape that `pack` packed into `bits`."""
    count = int(np.prod(shape))
    return torch.from_numpy(np.unpackbits(bits.cpu().numpy(), count=count).astype(bool).reshape(shape))
