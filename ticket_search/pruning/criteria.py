"""Pruning criteria. A criterion assigns a score to every weight; the survivors with the lowest scores are pruned.

The criteria in this file use only the weights' values. ``snip``, ``grasp`` and ``synflow`` run the network; see
`ticket_search.training.saliency`.
"""

from collections.abc import Callable

import torch

from ticket_search.config.pruning import Criterion
from ticket_search.pruning.masks import Tensors

Scores = dict[str, torch.Tensor]


def magnitude(initial: Tensors, final: Tensors, generator: torch.Generator) -> Scores:
    """Return ``|final|`` (Frankle & Carbin 2019); Zhou et al. (2019) call it ``large_final``."""
    del initial, generator
    return {name: weight.abs() for name, weight in final.items()}


def random(initial: Tensors, final: Tensors, generator: torch.Generator) -> Scores:
    """Return random scores in [0, 1), as a control.

    The scores are drawn on the CPU, so that every device prunes the same weights.
    """
    del initial
    return {name: torch.rand(w.shape, generator=generator).to(w.device) for name, w in final.items()}


def magnitude_increase(initial: Tensors, final: Tensors, generator: torch.Generator) -> Scores:
    """Return ``|final| - |initial|`` (Zhou et al. 2019)."""
    del generator
    return {name: weight.abs() - initial[name].abs() for name, weight in final.items()}


def movement(initial: Tensors, final: Tensors, generator: torch.Generator) -> Scores:
    """Return ``|final - initial|`` (Zhou et al. 2019)."""
    del generator
    return {name: (weight - initial[name]).abs() for name, weight in final.items()}


def large_init(initial: Tensors, final: Tensors, generator: torch.Generator) -> Scores:
    """Return ``|initial|`` (Zhou et al. 2019)."""
    del generator
    return {name: initial[name].abs() for name in final}


def small_final(initial: Tensors, final: Tensors, generator: torch.Generator) -> Scores:
    """Return ``-|final|``, which keeps the smallest weights: the negative control of Zhou et al. (2019)."""
    del initial, generator
    return {name: -weight.abs() for name, weight in final.items()}


#: Each criterion takes the initial values (to which survivors are rewound), the final values and a generator, and
#: returns float scores of the same shapes.
CRITERIA: dict[Criterion, Callable[[Tensors, Tensors, torch.Generator], Scores]] = {
    "magnitude": magnitude,
    "random": random,
    "large_final": magnitude,
    "magnitude_increase": magnitude_increase,
    "movement": movement,
    "large_init": large_init,
    "small_final": small_final,
}

#: The criteria that use the initial values.
COMPARE_WITH_INITIAL: frozenset[Criterion] = frozenset({"magnitude_increase", "movement", "large_init"})
