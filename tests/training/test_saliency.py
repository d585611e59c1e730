"""The saliency criteria give the same scores as a computation by hand."""

import pytest
import torch
from torch import nn, tensor
from torch.nn.functional import cross_entropy

from ticket_search.config.trajectory import ModelSpec
from ticket_search.models import build, prunable
from ticket_search.pruning.masks import apply_mask, full_mask, kept_weights
from ticket_search.pruning.strategies import STRATEGIES, Amount, in_rounds, prune
from ticket_search.tasks.images import ImageSample
from ticket_search.training import saliency


class Line(nn.Module):
    """A network small enough to compute by hand, with logits ``[0, BAx]`` for an image x of two pixels."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 2, bias=False)
        self.second = nn.Linear(2, 1, bias=False)

    def forward(self, images):
        logit = self.second(self.first(images.flatten(1)))
        return torch.cat([torch.zeros_like(logit), logit], dim=1)


A = tensor([[1.0, -2.0], [0.5, 3.0]])  # weights of the first layer
B = tensor([[2.0, -1.0]])  # weights of the second layer
X = tensor([[1.0, 0.5]])


def scores(criterion, mask=None, images=None):
    weights = {"first.weight": A, "second.weight": B}
    mask = mask or full_mask(weights, weights)
    weights = apply_mask(mask, weights)
    images = X.view(1, 1, 1, 2) if images is None else images
    found = saliency.saliency(criterion, Line(), weights, mask, ImageSample(images, tensor([1])), seed=0)
    return found["first.weight"], found["second.weight"]


def slope(z):
    """Return the first and second derivatives of ``-log softmax([0, z])[1]``."""
    p = 1 / (1 + torch.exp(-z))
    return p - 1, p * (1 - p)


def test_snip_is_the_weight_times_the_gradient():
    z = (B @ A @ X.T).item()  # 2 * (1 - 1) - (0.5 + 1.5) = -2
    assert z == -2.0
    d, _ = slope(tensor(z))
    first, second = scores("snip")
    assert torch.allclose(first, (A * d * (B.T @ X)).abs())
    assert torch.allclose(second, (B * d * (A @ X.T).T).abs())


def test_grasp_is_the_weight_times_the_hessian_times_the_gradient():
    # With z(A, B) = B A x and the loss l(z), the gradient is g = l' grad_z, and the Hessian times the gradient is
    # H g = l'' grad_z (grad_z . g) + l' (Hessian of z) g. Here d is l' and d2 is l''.
    d, d2 = slope(tensor(-2.0))
    grad_a, grad_b = B.T @ X, (A @ X.T).T
    inner = d * ((grad_a * grad_a).sum() + (grad_b * grad_b).sum())
    ga, gb = d * grad_a, d * grad_b
    # The Hessian of z couples A and B: a step (dA, dB) changes grad_a by dB^T x^T, and grad_b by (dA x)^T.
    ha = d2 * grad_a * inner + d * (gb.T @ X)
    hb = d2 * grad_b * inner + d * (ga @ X.T).T
    first, second = scores("grasp")
    assert torch.allclose(first, A * ha)
    assert torch.allclose(second, B * hb)


def test_synflow_is_the_flow_through_positive_weights_for_ones():
    first, second = scores("synflow", images=torch.full((1, 1, 1, 2), -7.0))
    ones = torch.ones(1, 2)
    assert torch.allclose(first.float(), A.abs() * (B.abs().T @ ones))
    assert torch.allclose(second.float(), B.abs() * (A.abs() @ ones.T).T)
    # The total score is the same in every layer (Tanaka et al. 2020, theorem 1).
    assert first.sum().item() == pytest.approx(second.sum().item())


def test_grasp_keeps_the_gradient_of_the_survivors():
    """Each score is the weight times the derivative of half the squared norm of the survivors' gradient.

    The test computes this derivative by finite differences in float64.
    """
    kept = torch.cat([tensor([True, False, True, True]), tensor([True, True])])
    mask = {"first.weight": kept[:4].view(2, 2), "second.weight": kept[4:].view(1, 2)}

    def half_norm(values):
        w = values.clone().requires_grad_()
        logit = w[4:].view(1, 2) @ (w[:4].view(2, 2) @ X.double().T)
        loss = cross_entropy(torch.cat([torch.zeros_like(logit), logit], dim=1), tensor([1]))
        (gradient,) = torch.autograd.grad(loss, w)
        return 0.5 * (gradient[kept] ** 2).sum()

    w = torch.cat([A.flatten(), B.flatten()]).double() * kept
    step = 1e-5 * torch.eye(6, dtype=torch.float64)
    slopes = torch.stack([(half_norm(w + h) - half_norm(w - h)) / 2e-5 for h in step])
    first, second = scores("grasp", mask)
    assert torch.allclose(torch.cat([first.flatten(), second.flatten()]).double(), w * slopes, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("criterion", saliency.CRITERIA)
def test_pruned_weights_have_no_score(criterion):
    mask = {"first.weight": tensor([[True, False], [True, True]]), "second.weight": tensor([[True, True]])}
    first, _ = scores(criterion, mask)
    assert first[0, 1] == 0
    assert first.count_nonzero() == 3


@pytest.mark.parametrize("criterion", saliency.CRITERIA)
def test_saliency_with_batch_norm_and_dropout_is_reproducible(criterion):
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4 * 36, 10)
    )
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    mask = full_mask(weights, prunable(network))
    sample = ImageSample(torch.rand(20, 1, 8, 8), torch.arange(20) % 10)
    one, other = (saliency.saliency(criterion, network, weights, mask, sample, seed=3) for _ in range(2))
    assert [torch.equal(one[name], other[name]) for name in mask] == [True, True]
    assert all(torch.isfinite(score).all() for score in one.values())
    assert {score.shape for score in one.values()} == {weights[name].shape for name in mask}


def test_synflow_does_not_empty_layers_that_magnitude_empties():
    """At density 0.001, magnitude would empty layers if tensors did not always keep a weight, but SynFlow would not."""
    network = build(ModelSpec(name="lenet_300_100_100"), (1, 28, 28), 10, seed=0)
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    mask = full_mask(weights, prunable(network))
    total = kept_weights(mask)
    images = torch.randn(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    sample = ImageSample(images, torch.arange(64) % 10)

    def emptied(found, mask):
        """Return the tensors that lose all weights if only the best thousandth of all weights is kept."""
        every = torch.cat([torch.where(kept, found[name], -1.0).flatten() for name, kept in mask.items()])
        cut = every.sort(descending=True).values[round(total * 1e-3) - 1]
        return [name for name, kept in mask.items() if not (kept & (found[name] >= cut)).any()]

    assert emptied({name: weights[name].abs() for name in mask}, mask)
    groups = STRATEGIES["global"](mask, Amount(rate=0.2, target=1e-3))
    for step in in_rounds(mask, groups, saliency.ROUNDS["synflow"]):
        found = saliency.saliency("synflow", network, apply_mask(mask, weights), mask, sample, seed=0)
        before, mask = mask, prune(mask, found, step)
    assert emptied(found, before) == []
    assert kept_weights(mask) == round(total * 1e-3)
