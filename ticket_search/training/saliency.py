"""Saliency criteria, which score weights before training by running the network.

The weights with the lowest scores are pruned first. All scores are computed at the initial values of the surviving
weights, with pruned weights set to zero.
"""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from ticket_search.config.pruning import Criterion
from ticket_search.pruning.criteria import Scores
from ticket_search.pruning.masks import Mask
from ticket_search.tasks.task import Sample
from ticket_search.training.determinism import reproducible, seed_generators

#: The number of pruning rounds, each with new scores; 100 for SynFlow, as in Tanaka et al. (2020).
ROUNDS: dict[Criterion, int] = {"snip": 1, "grasp": 1, "synflow": 100}


def snip(network: nn.Module, sample: Sample, mask: Mask) -> Scores:
    """Return ``|w * dL/dw|``, where L is the loss on a sample (Lee et al. 2019).

    Batch norm uses the sample's statistics.
    """
    weights, gradients = _gradients(network, sample, mask, create_graph=False)
    return {name: (w * g).abs().detach() for name, w, g in zip(mask, weights, gradients, strict=True)}


def grasp(network: nn.Module, sample: Sample, mask: Mask) -> Scores:
    """Return ``w * (H g)``, with gradient g and Hessian H of the loss on a sample (Wang et al. 2020, equation 8).

    Removing a weight changes the squared norm of the surviving weights' gradient by about -2 w (H g). The weights
    whose removal increases this norm most, or reduces it least, have the lowest scores and are pruned.

    The authors' code also divides the logits by a temperature of 200. This function does not, because the paper's
    equations contain no temperature.
    """
    weights, gradients = _gradients(network, sample, mask, create_graph=True)
    kept = [mask[name].to(g.device) for name, g in zip(mask, gradients, strict=True)]
    inner = sum((g * g.detach() * k).sum() for g, k in zip(gradients, kept, strict=True))
    products = torch.autograd.grad(inner, weights)  # type: ignore[arg-type]
    return {name: (w * hg).detach() for name, w, hg in zip(mask, weights, products, strict=True)}


def synflow(network: nn.Module, sample: Sample, mask: Mask) -> Scores:
    """Return ``|w * dR/dw|`` in float64, where R is the sum of the network's outputs for an input of ones.

    This is equation 3 of Tanaka et al. (2020). All weights are first replaced by their absolute values. As in the
    authors' code, batch norm runs in evaluation mode, and its parameters and statistics are replaced by their absolute
    values too. Only the shape of the sample is used.
    """
    with torch.no_grad():
        for value in network.state_dict().values():
            value.abs_()
    network.double().eval()
    weights = _parameters(network, mask)
    gradients = torch.autograd.grad(network(sample.ones()).sum(), weights)
    scores = {name: (w * g).abs().detach() for name, w, g in zip(mask, weights, gradients, strict=True)}
    network.float()
    return scores


CRITERIA: dict[Criterion, Callable[[nn.Module, Sample, Mask], Scores]] = {
    "snip": snip,
    "grasp": grasp,
    "synflow": synflow,
}


def saliency(
    criterion: Criterion,
    network: nn.Module,
    weights: Mapping[str, Tensor],
    mask: Mask,
    sample: Sample,
    seed: int,
) -> Scores:
    """Return a criterion's scores for masked weights, as CPU tensors.

    Args:
        criterion: the criterion that computes the scores.
        network: the network, on the sample's device; its weights are overwritten.
        weights: every parameter and buffer, with the mask applied.
        mask: the mask of the prunable weights.
        sample: training examples.
        seed: the seed of dropout.
    """
    device = next(network.parameters()).device
    network.load_state_dict({name: value.to(device) for name, value in weights.items()}, strict=True)
    with reproducible(device):
        seed_generators(device, seed)
        scores = CRITERIA[criterion](network.train(), sample, mask)
    return {name: score.cpu() for name, score in scores.items()}


def _parameters(network: nn.Module, names: Iterable[str]) -> list[nn.Parameter]:
    parameters = dict(network.named_parameters())
    return [parameters[name] for name in names]


def _gradients(
    network: nn.Module, sample: Sample, mask: Mask, *, create_graph: bool
) -> tuple[list[nn.Parameter], tuple[Tensor, ...]]:
    weights = _parameters(network, mask)
    return weights, torch.autograd.grad(sample.loss(network), weights, create_graph=create_graph)
