"""Criteria: a score for every weight. The lowest scores among the survivors are pruned."""

from collections.abc import Callable

import torch

from ticket_search.pruning.masks import Tensors
from ticket_search.spec.trajectory import Criterion

Scores = dict[str, torch.Tensor]


def magnitude(final: Tensors, generator: torch.Generator) -> Scores:
    """The size of each trained weight (Frankle & Carbin 2019)."""
    del generator
    return {name: weight.abs() for name, weight in final.items()}


def random(final: Tensors, generator: torch.Generator) -> Scores:
    """Uniform in [0, 1): a control. Drawn on the CPU, so that every device prunes the same weights."""
    return {name: torch.rand(w.shape, generator=generator).to(w.device) for name, w in final.items()}


#: final weights of the prunable tensors and a generator -> float scores of the same shapes.
CRITERIA: dict[Criterion, Callable[[Tensors, torch.Generator], Scores]] = {"magnitude": magnitude, "random": random}
