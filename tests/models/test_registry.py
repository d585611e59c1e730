import sys

import pytest
import torch
from torch import nn

from ticket_search.config.trajectory import ModelSpec
from ticket_search.errors import SpecError
from ticket_search.lottery.trajectory import run_trajectory
from ticket_search.models import build, check, network_digest, output_mark, prunable
from ticket_search.store.level_store import LevelStore

MNIST, CIFAR10 = (1, 28, 28), (3, 32, 32)


def count(network):
    parameters = dict(network.named_parameters())
    return sum(parameters[name].numel() for name in prunable(network))


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A function that writes a module with a user's network and returns the `ModelSpec` of the network."""

    def write(body):
        (tmp_path / "own_network.py").write_text(
            f"import torch\nfrom torch import nn\n\ndef make(image_shape, classes):\n    {body}\n"
        )
        return ModelSpec(name="own_network:make")

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    sys.modules.pop("own_network", None)
    yield write
    sys.modules.pop("own_network", None)


@pytest.mark.parametrize(
    ("name", "image_shape", "weights"),
    [
        ("lenet_300_100", MNIST, 266_200),
        ("lenet_7", (1, 2, 2), 4 * 7 + 7 * 10),
        ("conv2", CIFAR10, 4_300_992),
        ("conv4", CIFAR10, 2_425_024),
        ("conv6", CIFAR10, 2_261_184),
        ("torchvision/resnet18", CIFAR10, 11_172_032),
    ],
)
def test_prunable_weights(name, image_shape, weights):
    assert count(build(ModelSpec(name=name), image_shape, 10, seed=0)) == weights


@pytest.mark.parametrize(
    ("name", "image_shape"),
    [
        ("lenet_300_100", MNIST),
        ("lenet_5_4_3", CIFAR10),
        ("conv2", MNIST),
        ("conv4", (1, 8, 8)),
        ("conv6", (1, 9, 11)),
        ("torchvision/resnet18", MNIST),
        ("torchvision/mobilenet_v3_small", CIFAR10),
        ("torchvision/squeezenet1_1", (4, 32, 32)),
        ("torchvision/googlenet", CIFAR10),
        ("torchvision/inception_v3", (3, 80, 80)),
    ],
)
def test_forward(name, image_shape):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    check(ModelSpec(name=name), image_shape, 7)
    assert torch.equal(torch.get_rng_state(), state)


def test_lenet_and_conv_layers():
    lenet = build(ModelSpec(name="lenet_300_100"), MNIST, 10, seed=0)
    assert prunable(lenet) == ("fc1.weight", "fc2.weight", "output.weight")
    assert prunable(lenet)[-1] == "output.weight"
    conv = build(ModelSpec(name="conv4"), CIFAR10, 10, seed=0)
    shapes = [list(dict(conv.named_parameters())[name].shape) for name in prunable(conv)]
    assert shapes == [
        [64, 3, 3, 3],
        [64, 64, 3, 3],
        [128, 64, 3, 3],
        [128, 128, 3, 3],
        [256, 8192],
        [256, 256],
        [10, 256],
    ]


@pytest.mark.parametrize("name", ["lenet_300_100", "conv2", "torchvision/resnet18"])
def test_initialization_is_a_function_of_the_seed(name):
    torch.manual_seed(0)
    first = build(ModelSpec(name=name), CIFAR10, 10, seed=0)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    second = build(ModelSpec(name=name), CIFAR10, 10, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    same = [torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)]
    assert all(same)
    other = build(ModelSpec(name=name), CIFAR10, 10, seed=1)
    weight = prunable(first)[0]
    assert not torch.equal(other.get_parameter(weight), first.get_parameter(weight))


def test_glorot():
    network = build(ModelSpec(name="lenet_300_100"), MNIST, 10, seed=0)
    std = network.get_parameter("fc1.weight").std().item()
    assert abs(std / (2 / (784 + 300)) ** 0.5 - 1) < 0.01
    assert not any(p.any() for name, p in network.named_parameters() if name.endswith("bias"))


def test_images_too_small_for_the_network_are_refused():
    with pytest.raises(SpecError, match=r"'conv6': images of 7x9 pixels are too small for 3 pools of 2x2.*8x8"):
        build(ModelSpec(name="conv6"), (1, 7, 9), 10, seed=0)
    with pytest.raises(SpecError, match="'torchvision/alexnet' cannot take images of 3 x 8 x 8: RuntimeError"):
        check(ModelSpec(name="torchvision/alexnet"), (3, 8, 8), 10)


@pytest.mark.parametrize("name", ["torchvision/resnet81", "torchvision/fasterrcnn_resnet50_fpn"])
def test_unknown_torchvision_networks(name):
    with pytest.raises(SpecError, match=f"unknown model '{name}'.*torchvision/resnet18, "):
        build(ModelSpec(name=name), CIFAR10, 10, seed=0)


def test_a_user_network(own):
    spec = own("return nn.Sequential(nn.Flatten(), nn.Linear(image_shape[1] * image_shape[2], classes))")
    check(spec, (1, 2, 3), 5)
    network = build(spec, (1, 2, 3), 5, seed=0)
    assert prunable(network) == ("1.weight",)
    assert torch.equal(network[1].weight, build(spec, (1, 2, 3), 5, seed=0)[1].weight)
    assert len(network_digest(spec)) == 64
    assert network_digest(ModelSpec(name="conv2")) == network_digest(ModelSpec(name="torchvision/resnet18")) == ""


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 'resnet'", "the function returned 'resnet', not a torch.nn.Module"),
        ("raise ValueError('too deep')", "the function raised ValueError: too deep"),
        ("return nn.Flatten()", "Flatten has nothing to prune.*its parameters: none"),
        ("return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))", "'1.weight' of Sequential has no shape yet"),
        ("return nn.Linear(99, 10)", "cannot take images of 1 x 2 x 3: RuntimeError"),
        (
            "return nn.Sequential(nn.Flatten(), nn.Linear(6, 4))",
            r"in training mode returned torch.float32 \[2, 4\] for 2 images of 1 x 2 x 3; .* shape \[2, 5\]",
        ),
    ],
)
def test_an_unsuitable_user_network_is_refused(own, body, message):
    with pytest.raises(SpecError, match=message):
        check(own(body), (1, 2, 3), 5)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(5, 3)
        self.norm = nn.LayerNorm(3)
        self.attention = nn.MultiheadAttention(3, 1)
        self.position = nn.Parameter(torch.zeros(4, 3))
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.head = nn.Linear(3, 5)
        self.head.weight = self.words.weight


def test_tied_parameters_count_once_and_embeddings_not_at_all():
    assert prunable(Tied()) == ("attention.in_proj_weight", "attention.out_proj.weight", "first.weight")
    assert prunable(Tied())[-1] == "first.weight"


class HeadFirst(nn.Module):
    """A network that registers its head before its body, but runs it after its body."""

    def __init__(self, **attributes):
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, images):
        return self.head(nn.functional.dropout(self.body(images), training=self.training))


class Stated(HeadFirst):
    @property
    def output_layer(self):
        return self.body


class WithMethod(HeadFirst):
    def output_layer(self, images):
        return self.head(images)


class TestTheOutputLayer:
    IMAGES = torch.zeros(2, 1, 3, 4)

    def test_is_the_layer_that_runs_last(self):
        network = HeadFirst().train()
        torch.manual_seed(0)
        state = torch.get_rng_state()
        assert prunable(network, self.IMAGES) == ("body.1.weight", "head.weight")
        assert torch.equal(torch.get_rng_state(), state)
        assert (network.training, network.body.training) == (True, True)
        assert not any(module._forward_pre_hooks for module in network.modules())

    def test_is_the_layer_registered_last_if_no_images_are_given(self):
        assert prunable(HeadFirst()) == ("head.weight", "body.1.weight")
        assert prunable(Tied())[-1] == "first.weight"

    @pytest.mark.parametrize("stated", ["head", "head.weight"])
    def test_is_the_layer_or_weight_that_the_network_names(self, stated):
        assert prunable(HeadFirst(output_layer=stated))[-1] == "head.weight"

    def test_is_the_module_that_the_network_names(self):
        assert prunable(Stated(), self.IMAGES)[-1] == "body.1.weight"
        tied = Tied()
        tied.output_layer = "second"
        assert prunable(tied)[-1] == "first.weight"

    def test_is_not_a_method_of_that_name(self):
        assert prunable(WithMethod(), self.IMAGES)[-1] == "head.weight"

    @pytest.mark.parametrize("stated", ["neck", 3, "body.0", "head.bias"])
    def test_must_be_prunable(self, stated):
        message = (
            f"HeadFirst.output_layer is '{stated}'; it must be one of the prunable weights head.weight, body.1.weight"
        )
        with pytest.raises(SpecError, match=message):
            prunable(HeadFirst(output_layer=stated))

    def test_is_part_of_the_level_key_if_it_is_not_registered_last(self):
        network = HeadFirst()
        assert output_mark(network, prunable(network)) == ""
        assert output_mark(network, prunable(network, self.IMAGES)) == "|output layer head.weight"

    @pytest.mark.parametrize(
        ("name", "image_shape", "last"),
        [
            ("lenet_300_100", MNIST, "output.weight"),
            ("conv6", CIFAR10, "output.weight"),
            ("resnet8", CIFAR10, "output.weight"),
            ("vgg16", CIFAR10, "output.weight"),
            ("torchvision/squeezenet1_1", (3, 32, 32), "classifier.1.weight"),
        ],
    )
    def test_is_registered_last_in_the_built_in_networks(self, name, image_shape, last):
        network = build(ModelSpec(name=name), image_shape, 10, seed=0)
        names = prunable(network, torch.zeros(2, *image_shape))
        assert (names, names[-1]) == (prunable(network), last)

    def test_is_pruned_at_its_own_rate_wherever_it_is_registered(self, own, trajectory, digits, tmp_path):
        """With a pruning rate of 0.5 and an `output_layer_rate` of 0, half of the body is pruned, but not the head."""
        spec = own(
            "network = nn.Module()\n"
            "    network.head, network.body = nn.Linear(8, classes), nn.Linear(64, 8)\n"
            "    network.forward = lambda images: network.head(network.body(images.flatten(1)))\n"
            "    return network"
        )
        changes = {"model.name": spec.name, "max_levels": 1, "pruning_rate": 0.5, "training.iterations": 4}
        changes |= {"strategy": "layerwise", "output_layer_rate": 0.0, "rewind_iteration": 0}
        levels = list(run_trajectory(trajectory(changes), digits, LevelStore(tmp_path)))
        kept = {name: int(mask.sum()) for name, mask in levels[1].mask.items()}
        assert kept == {"body.weight": 256, "head.weight": 80}
