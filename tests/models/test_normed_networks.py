"""Tests for the CIFAR networks with batch normalization, and for named initializations."""

import math

import pytest
import torch
from torch import nn

from ticket_search.config.trajectory import ModelSpec
from ticket_search.errors import SpecError
from ticket_search.lottery.trajectory import run_trajectory
from ticket_search.models import build, prunable
from ticket_search.store.level_store import LevelStore

CIFAR10 = (3, 32, 32)


def made(name, shape=CIFAR10, classes=10, **spec):
    return build(ModelSpec(name=name, **spec), shape, classes, seed=0)


@pytest.mark.parametrize(
    ("name", "convolutions", "weights", "norms"),
    [
        ("resnet8", 9, 76_720 + 640, 9),
        ("resnet20", 21, 270_256 + 640, 21),
        ("resnet110", 111, 1_721_776 + 640, 111),
        ("vgg16", 13, 14_710_464 + 5_120, 13),
        ("vgg19", 16, 20_018_880 + 5_120, 16),
    ],
)
def test_layers_of_resnet_and_vgg(name, convolutions, weights, norms):
    network = made(name)
    parameters = dict(network.named_parameters())
    names = prunable(network)
    assert sum(parameters[n].numel() for n in names) == weights
    assert sum(parameters[n].ndim == 4 for n in names) == convolutions
    assert sum(isinstance(m, nn.BatchNorm2d) for m in network.modules()) == norms
    assert names[-1] == "output.weight"


def test_resnet20_has_as_many_parameters_as_in_he_et_al():
    """He et al. (table 6) report 0.27 million parameters. Our shortcuts add projections with 2,560 + 192 parameters."""
    total = sum(p.numel() for p in made("resnet20").parameters())
    assert total - (2_560 + 2 * (32 + 64)) == 269_722


@pytest.mark.parametrize("name", ["resnet14", "vgg16", "vgg19"])
@pytest.mark.parametrize("shape", [CIFAR10, (1, 28, 28)])
def test_networks_accept_images(name, shape):
    assert made(name, shape, 7)(torch.zeros(2, *shape)).shape == (2, 7)


def test_images_too_small_for_the_pools_are_refused():
    with pytest.raises(
        SpecError, match="'vgg16': images of 8x8 pixels are too small for 4 pools of 2x2; the network needs at"
    ):
        made("vgg16", (1, 8, 8))


def test_an_underscore_in_a_resnets_name_is_ignored():
    assert ModelSpec(name="resnet_20") == ModelSpec(name="resnet20")


def test_mlp_is_lenet_with_another_initialization():
    mlp, lenet = (made(f"{kind}_30_20", (1, 8, 8)) for kind in ("mlp", "lenet"))
    assert {n: w.shape for n, w in mlp.state_dict().items()} == {n: w.shape for n, w in lenet.state_dict().items()}
    assert mlp[1].weight.std().item() == pytest.approx(math.sqrt(2 / 64), rel=0.05)
    assert lenet[1].weight.std().item() == pytest.approx(math.sqrt(2 / (64 + 30)), rel=0.05)


@pytest.mark.parametrize(
    ("init", "std"),
    [
        ("kaiming_normal", math.sqrt(2 / 256)),
        ("kaiming_uniform", math.sqrt(2 / 256)),
        ("glorot_normal", math.sqrt(2 / (256 + 400))),
        ("glorot_uniform", math.sqrt(2 / (256 + 400))),
    ],
)
def test_initializations_have_the_spread_of_their_papers(init, std):
    network = made("lenet_400", (1, 16, 16), init=init)
    weights = network[1].weight.detach()
    assert weights.std().item() == pytest.approx(std, rel=0.02)
    assert weights.mean().item() == pytest.approx(0, abs=3 * std / math.sqrt(weights.numel()))
    bound = weights.abs().max().item() / std
    assert bound < math.sqrt(3) + 1e-6 if init.endswith("uniform") else bound > 4
    assert network[1].bias.count_nonzero() == 0


def test_orthogonal_rows_are_orthonormal():
    weights = made("lenet_20", (1, 8, 8), init="orthogonal")[1].weight
    assert torch.allclose(weights @ weights.T, torch.eye(20), atol=1e-5)


def test_an_initialization_follows_the_seed_and_the_draw():
    spec = ModelSpec(name="resnet8", init="orthogonal")
    first, same, other, drawn = (
        build(spec, CIFAR10, 10, seed, draw).state_dict()["conv.weight"]
        for seed, draw in ((0, 0), (0, 0), (1, 0), (0, 1))
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert not torch.equal(first, drawn)


def test_evaluation_does_not_change_batch_norm_statistics(trajectory, tmp_path, digits):
    """Evaluating a level eight times as often does not change its running statistics."""
    changes = {"model.name": "resnet8", "rewind_iteration": 3, "max_levels": 1, "training.iterations": 8}
    often, once = (
        list(
            run_trajectory(trajectory(changes | {"training.evaluate_every": n}), digits, LevelStore(tmp_path / str(n)))
        )
        for n in (1, 8)
    )
    assert len(often[0].curve) == 8
    for name, value in often[0].final_weights.items():
        assert torch.equal(value, once[0].final_weights[name])
    assert int(often[0].final_weights["bn.num_batches_tracked"]) == 8
    assert often[1].curve[-1].val_loss == once[1].curve[-1].val_loss
    assert all(torch.equal(kept, once[1].mask[name]) for name, kept in often[1].mask.items())
