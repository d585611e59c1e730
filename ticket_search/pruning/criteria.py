"""Criteria: a score for every weight. The lowest scores among the survivors are pruned.

Those here look at a weight's values alone. ``snip``, ``grasp`` and ``synflow`` need the network, see
`ticket_search.training.saliency`.
"""

from collections.abc import Callable

import torch

from ticket_search.config.pruning import Criterion
from ticket_search.pruning.masks import Tensors

Scores = dict[str, torch.Tensor]


def magnitude(initial: Tensors, final: Tensors, generator: torch.Generator) -> Scores:
    """``|final|``: the size of each trained weight (Frankle & Carbin 2019); ``large_final`` of Zhou et al. (2019)."""
    del initial, generator
    return {name: weight.abs() for name, weight in final.items()}


def random(initial: Tensors, final: Tensors, generator: torch.Generator) -> Scores:
    """Uniform in [0, 1): a control. Drawn on the CPU, so that every device prunes the same weights."""
    del initial
    return {name: torch.rand(w.shape, generator=generator).to(w.device) for name, w in final.items()}


def magnitude_increase(initial: Tensors, final: Tensors, generator: torch.Generator) -> Scores:
    """``|final| - |initial|`` (Zhou et al. 2019)."""
    del generator
    return {name: weight.abs() - initial[name].abs() for name, weight in final.items()}


def movement(initial: Tensors, final: Tensors, generator: torch.Generator) -> Scores:
    """``|final - initial|`` (Zhou et al. 2019)."""
    del generator
    return {name: (weight - initial[name]).abs() for name, weight in final.items()}


def large_init(initial: Tensors, final: Tensors, generator: torch.Generator) -> Scores:
    """``|initial|`` (Zhou et al. 2019)."""
    del generator
    return {name: initial[name].abs() for name in final}


def small_final(initial: Tensors, final: Tensors, generator: torch.Generator) -> Scores:
    """``-|final|``: the negative control of Zhou et al. (2019), which keeps the smallest."""
    del initial, generator
    return {name: -weight.abs() for name, weight in final.items()}


#: Initial values (those that survivors rewind to), final values and a generator -> float scores of the same shapes.
CRITERIA: dict[Criterion, Callable[[Tensors, Tensors, torch.Generator], Scores]] = {
    "magnitude": magnitude,
    "random": random,
    "large_final": magnitude,
    "magnitude_increase": magnitude_increase,
    "movement": movement,
    "large_init": large_init,
    "small_final": small_final,
}

#: Those that look at initial values.
COMPARE_WITH_INITIAL: frozenset[Criterion] = frozenset({"magnitude_increase", "movement", "large_init"})
