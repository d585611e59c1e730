"""The sparse executor: its kernels, its lanes, and its agreement with the plain executor."""

import copy
import dataclasses
import warnings

import numpy as np
import pytest
import torch
from test_checkpoints import Killed, Saved, assert_same
from test_train import ADAM, MOMENTUM, SGD, half, inputs, make, spec, state
from torch import nn
from torch.nn import functional
from trainings import train_levels

from ticket_search.config.trajectory import AugmentSpec, DatasetSpec, ModelSpec, OptimizerSpec
from ticket_search.data.arrays import read_arrays
from ticket_search.data.dataset import make_dataset
from ticket_search.errors import SpecError
from ticket_search.models import build
from ticket_search.tasks.images import ImageTask
from ticket_search.training.executors.sparse import SparseExecutor, check_network, sparse_lane
from ticket_search.training.fully_connected import fully_connected_layers
from ticket_search.training.lane import PlainLane
from ticket_search.training.request import TrainRequest
from ticket_search.training.sparse import kernels, layers
from ticket_search.training.sparse.lane import SparseLane
from ticket_search.training.sparse.layers import (
    NO_ACTIVATION,
    RELU,
    DenseLayer,
    KeptWeights,
    Parameters,
    SparseLayer,
)
from ticket_search.training.sparse.module import ModuleLane, SparseLinear, with_sparse_layers


def random_mask(shape, density, seed=3):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density


def masked(network, density):
    return {n: random_mask(p.shape, density) for n, p in network.named_parameters() if p.ndim >= 2}


def request(network, task, training, mask=None, **fields):
    level = inputs(network, mask, **fields)
    return TrainRequest(level=level, network=copy.deepcopy(network), task=task, training=training, key="")


def losses(lane, count=40):
    return torch.stack([lane(iteration) for iteration in range(count)])


def train_sparse(network, task, training, mask=None, checkpoints=None, **fields):
    asked = dataclasses.replace(request(network, task, training, mask, **fields), checkpoints=checkpoints)
    executor = SparseExecutor()
    executor.submit(asked)
    ((_, outputs),) = executor.advance()
    return outputs


def arrays(*shapes, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.standard_normal(shape).astype(np.float32) for shape in shapes]


class TestLayers:
    """Both kinds of layers compute what autograd computes."""

    @pytest.mark.parametrize("batch", [16, 32, 48, 64, 80, 112, 128])
    @pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
    @pytest.mark.parametrize("floor", [RELU, NO_ACTIVATION])
    @pytest.mark.parametrize("kind", [SparseLayer, DenseLayer])
    def test_outputs_and_gradients(self, kind, floor, density, batch):
        kept = random_mask((23, 37), density)
        kept[4] = False  # a unit without inputs
        weight, bias, x, slope = (torch.from_numpy(a) for a in arrays((23, 37), 23, (37, batch), (23, batch)))
        layer = kind(kept, floor)
        flat, gradients = (np.full(layer.stored + 23, np.nan, np.float32) for _ in range(2))
        own = Parameters(flat, gradients, 0, layer.stored, 23)
        layer.bind(own)
        own.values[:], own.bias[:] = layer.gather(weight).numpy(), bias.numpy()

        leaves = [(weight * kept).requires_grad_(), bias.clone().requires_grad_(), x.clone().requires_grad_()]
        expected = leaves[0] @ leaves[2] + leaves[1][:, None]
        expected = expected.relu() if floor == RELU else expected
        expected.backward(slope)

        out, x_slope, slope = np.empty((23, batch), np.float32), np.empty((37, batch), np.float32), slope.numpy().copy()
        layer.forward(x.numpy(), out)
        layer.backward(x.numpy(), out, slope, x_slope)
        np.testing.assert_allclose(out, expected.detach(), atol=1e-5)
        np.testing.assert_allclose(own.d_bias, leaves[1].grad, atol=1e-5)
        np.testing.assert_allclose(x_slope, leaves[2].grad, atol=1e-5)
        found = layer.scatter(torch.from_numpy(own.d_values))
        np.testing.assert_allclose(found, leaves[0].grad * kept, atol=5e-5)
        assert torch.equal(layer.scatter(torch.from_numpy(own.values)), weight * kept)

    def test_results_of_a_column_do_not_depend_on_the_other_columns(self):
        kept = KeptWeights(random_mask((20, 30), 0.4))
        values, bias, x = arrays(len(kept), 20, (30, 112))
        outs = []
        for columns in (slice(0, 112), slice(48, 64), slice(32, 96)):
            part = np.ascontiguousarray(x[:, columns])
            out = np.empty((20, part.shape[1]), np.float32)
            kernels.forward(kept.rows, kept.columns, values, bias, part, out, RELU)
            outs.append(out)
        assert (outs[0][:, 48:64] == outs[1]).all()
        assert (outs[0][:, 32:96] == outs[2]).all()

    def test_nan_passes_the_activation(self):
        kept = KeptWeights(torch.ones(1, 1, dtype=torch.bool))
        x, out = np.full((1, 16), np.nan, np.float32), np.zeros((1, 16), np.float32)
        kernels.forward(kept.rows, kept.columns, *arrays(1, 1), x, out, RELU)
        assert np.isnan(out).all()

    def test_large_layers_above_the_threshold_are_dense(self):
        assert isinstance(layers.make_layer(random_mask((100, 100), 0.8), RELU), DenseLayer)
        assert isinstance(layers.make_layer(random_mask((100, 100), 0.5), RELU), SparseLayer)
        assert isinstance(layers.make_layer(random_mask((10, 100), 1.0), RELU), SparseLayer)


class TestKernels:
    @pytest.mark.parametrize("shape", [(1, 28, 28), (3, 5, 7), (1, 4, 4)])
    def test_images_are_normalized_to_the_same_bits_as_by_the_data_set(self, shape):
        channels, height, width = shape
        images = np.random.default_rng(0).integers(0, 256, (50, *shape), dtype=np.uint8)
        scale, shift = (torch.from_numpy(a) for a in arrays((channels, 1, 1), (channels, 1, 1)))
        rows = np.random.default_rng(1).integers(0, 50, 32)
        x = np.zeros((channels * height * width, 48), np.float32)
        each = [v.repeat(1, height, width).flatten().numpy() for v in (scale, shift)]
        kernels.load_images(images.reshape(50, -1), rows, *each, x)
        expected = (torch.from_numpy(images[rows]).float() * scale).add_(shift).reshape(32, -1).t()
        assert (x[:, :32] == expected.numpy()).all()
        assert (x[:, 32:] == 0).all()

    def test_cross_entropy_and_its_gradients(self):
        (logits,), labels = arrays((7, 32)), np.arange(20) % 7
        logits *= 30  # so that some probabilities underflow
        slope = np.empty_like(logits)
        loss = kernels.cross_entropy(logits, labels, 20, slope)
        leaf = torch.from_numpy(logits.T[:20].copy()).requires_grad_()
        expected = functional.cross_entropy(leaf, torch.from_numpy(labels))
        expected.backward()
        assert loss == pytest.approx(expected.item(), rel=1e-6)
        np.testing.assert_allclose(slope[:, :20], leaf.grad.T, atol=1e-7)
        assert (slope[:, 20:] == 0).all()

    def test_scores(self):
        (logits,), labels = arrays((7, 32)), np.arange(20) % 7
        logits[2, 3] = logits[4, 3] = 9.0  # a tie, which the first class wins, as in torch
        tensor, target = torch.from_numpy(logits.T[:20].copy()), torch.from_numpy(labels)
        loss, correct = kernels.score(logits, labels, 20)
        assert loss == pytest.approx(float(functional.cross_entropy(tensor, target, reduction="sum")), rel=1e-6)
        assert correct == int((tensor.argmax(1) == target).sum())

    @pytest.mark.parametrize("weight_decay", [0.0, 0.1])
    @pytest.mark.parametrize("name", ["adam", "sgd", "momentum"])
    def test_updates_are_those_of_torch(self, name, weight_decay):
        weights, first, second = arrays(50, 50, 50)
        first[:], second[:] = 0, 0
        leaf = torch.from_numpy(weights.copy()).requires_grad_()
        momentum = 0.9 if name == "momentum" else 0.0
        make_optimizer = torch.optim.Adam if name == "adam" else torch.optim.SGD
        fields = {} if name == "adam" else {"momentum": momentum}
        optimizer = make_optimizer([leaf], lr=0.01, weight_decay=weight_decay, **fields)
        for step in range(1, 30):
            (gradients,) = arrays(50, seed=step)
            leaf.grad = torch.from_numpy(gradients)
            optimizer.step()
            if name == "adam":
                kernels.adam(weights, gradients, first, second, step, 0.01, weight_decay)
            else:
                kernels.sgd(weights, gradients, first, 0.01, momentum, weight_decay)
        np.testing.assert_allclose(weights, leaf.detach(), rtol=2e-6, atol=1e-6)

    def test_kernels_are_compiled_without_a_cache_if_no_folder_is_writable(self, monkeypatch):
        asked = []

        def njit(**options):
            asked.append(options.get("cache", False))
            if options.get("cache"):
                raise RuntimeError("cannot cache function 'f': no locator available for file '/f.py'")
            return lambda function: function

        monkeypatch.setattr(kernels, "njit", njit)
        assert kernels._compiled(len) is len
        assert asked == [True, False]


OPTIMIZERS = pytest.mark.parametrize("optimizer", [ADAM, MOMENTUM, SGD], ids=["adam", "momentum", "sgd"])


class TestAgreementWithPlain:
    @OPTIMIZERS
    @pytest.mark.parametrize("density", [1.0, 0.8, 0.3, 0.02])
    def test_losses_of_a_fully_connected_network(self, digits, optimizer, density):
        network = build(ModelSpec(name="lenet_200_30"), (1, 8, 8), 10, seed=1)
        mask = masked(network, density) if density < 1 else None
        asked = request(network, digits, spec(optimizer), mask)
        lane = sparse_lane(asked)
        assert isinstance(lane, SparseLane)
        plain = PlainLane(request(network, digits, spec(optimizer), mask))
        torch.testing.assert_close(losses(lane), losses(plain), atol=2e-5, rtol=0)
        for split in ("validation", "test"):
            one, other = lane.score(split), plain.score(split)
            assert one.value == pytest.approx(other.value, abs=0.005)
            assert one.loss == pytest.approx(other.loss, abs=1e-4)
        assert list(lane.weights()) == list(plain.weights())
        for name, value in lane.weights().items():
            torch.testing.assert_close(value, plain.weights()[name], atol=2e-3, rtol=0)

    @OPTIMIZERS
    def test_losses_of_a_convolutional_network(self, digits, optimizer):
        network = build(ModelSpec(name="conv2"), (1, 8, 8), 10, seed=1)
        mask = masked(network, 0.05)
        training = spec(optimizer, batch_size=20)
        lane = sparse_lane(request(network, digits, training, mask))
        assert isinstance(lane, ModuleLane)
        plain = PlainLane(request(network, digits, training, mask))
        torch.testing.assert_close(losses(lane, 10), losses(plain, 10), atol=1e-3, rtol=1e-3)
        assert list(lane.weights()) == list(plain.weights())
        for name, kept in mask.items():
            assert lane.weights()[name].shape == kept.shape
            assert int(lane.weights()[name][~kept].count_nonzero()) == 0
        assert lane.score("test").loss == pytest.approx(plain.score("test").loss, abs=1e-2)

    @pytest.mark.parametrize("kind", ["augmented", "floats", "few pixels"])
    def test_losses_with_other_images(self, kind, tmp_path):
        whole = read_arrays(DatasetSpec(name="digits", validation=300), tmp_path)
        images = whole.train_images
        if kind == "floats":
            images = images.astype(np.float32) / 9
        if kind == "few pixels":
            images = images[:, :, 2:5, 2:6].copy()
        test = images[:100]
        data = dataclasses.replace(
            whole,
            train_images=images,
            test_images=test,
            test_labels=whole.train_labels[:100],
        )
        augment = AugmentSpec(crop=1, flip=True) if kind == "augmented" else None
        task = ImageTask(make_dataset(DatasetSpec(name="digits", validation=300, augment=augment), data))
        network = build(ModelSpec(name="lenet_40"), task.data.image_shape, 10, seed=1)
        mask = masked(network, 0.5)
        lanes = [make_lane(request(network, task, spec(ADAM), mask)) for make_lane in (sparse_lane, PlainLane)]
        assert isinstance(lanes[0], SparseLane)
        torch.testing.assert_close(losses(lanes[0]), losses(lanes[1]), atol=1e-5, rtol=0)
        assert lanes[0].score("test").loss == pytest.approx(lanes[1].score("test").loss, abs=1e-5)

    def test_the_schedule_and_the_shift(self, digits):
        network = make()
        training = spec(SGD, name="step", milestones=(10, 20), warmup=5)
        lanes = [
            make_lane(request(network, digits, training, half(network), shift=7))
            for make_lane in (sparse_lane, PlainLane)
        ]
        torch.testing.assert_close(losses(lanes[0], 20), losses(lanes[1], 20), atol=1e-5, rtol=0)

    def test_outputs_of_a_level(self, digits):
        network = make()
        mask = half(network)
        found = train_sparse(network, digits, spec(ADAM), mask, keep=(0, 5, 30), start=0)
        (expected,) = train_levels([inputs(network, mask, keep=(0, 5, 30))], copy.deepcopy(network), digits, spec(ADAM))
        assert [p.iteration for p in found.curve] == [p.iteration for p in expected.curve]
        assert list(found.kept) == [0, 5, 30]
        assert found.iterations == 30
        assert found.test_loss == pytest.approx(expected.test_loss, abs=1e-4)
        for point, other in zip(found.curve, expected.curve, strict=True):
            assert point.train_loss == pytest.approx(other.train_loss, abs=1e-4)
            assert point.val_loss == pytest.approx(other.val_loss, abs=1e-4)

    def test_a_level_that_diverges_ends(self, digits):
        network = make()
        outputs = train_sparse(network, digits, spec(OptimizerSpec(name="sgd", lr=1e30)), half(network))
        assert outputs.diverged
        assert outputs.curve[-1].iteration == 10


class TestBits:
    def nets(self):
        return {
            "fully connected": (make(), 0.3, ADAM),
            "fully connected, sgd": (make(), 0.3, MOMENTUM),
            "dense": (build(ModelSpec(name="lenet_200"), (1, 8, 8), 10, seed=0), 1.0, ADAM),
            "modules": (make(nn.Dropout(0.3)), 0.3, ADAM),
        }

    @pytest.mark.parametrize("name", ["fully connected", "fully connected, sgd", "dense", "modules"])
    def test_a_level_has_the_same_bits_wherever_it_is_interrupted(self, name, digits):
        network, density, optimizer = self.nets()[name]
        mask = masked(network, density) if density < 1 else None
        expected = train_sparse(network, digits, spec(optimizer), mask, keep=(3, 17))
        assert len(expected.curve) == 3
        for kill_after in (0, 4, 10, 25):
            saved = Saved(kill_after)
            with pytest.raises(Killed):
                train_sparse(network, digits, spec(optimizer), mask, saved, keep=(3, 17))
            saved.left = None
            outputs = train_sparse(network, digits, spec(optimizer), mask, saved, keep=(3, 17))
            assert_same(outputs, expected)
            assert saved.iterations[0] == 1

    def test_a_level_has_the_same_bits_after_other_levels(self, digits):
        network = make()
        mask = half(network)
        executor, together = SparseExecutor(), []
        for asked in (
            request(network, digits, spec(ADAM), mask),
            request(make(seed=4), digits, spec(SGD)),
            request(network, digits, spec(ADAM), mask),
        ):
            executor.submit(asked)
            together += [outputs for _, outputs in executor.advance()]
        assert_same(together[2], together[0])

    def test_torch_threads_and_generators_do_not_matter(self, digits):
        network = make()
        before = train_sparse(network, digits, spec(ADAM), half(network))
        torch.manual_seed(99)
        assert_same(train_sparse(network, digits, spec(ADAM), half(network)), before)


class Reads(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        return functional.linear(x.flatten(1), self.fc.weight)


class TestWhichNetworks:
    @pytest.mark.parametrize(
        ("network", "names"),
        [
            (nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), ["1", "3"]),
            (nn.Sequential(nn.Linear(4, 2)), ["0"]),
            (nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), None),
            (nn.Sequential(nn.Linear(4, 3), nn.ReLU()), None),
            (nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), None),
            (nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 2)), None),
            (nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2, dtype=torch.float64)), None),
            (nn.Sequential(nn.ReLU(), nn.Linear(4, 3)), None),
            (nn.Sequential(), None),
            (Reads(), None),
        ],
    )
    def test_fully_connected_layers(self, network, names):
        found = fully_connected_layers(network)
        assert (None if found is None else [name for name, _ in found]) == names

    def test_a_network_that_uses_a_layer_twice_is_not_a_chain_of_layers(self):
        layer = nn.Linear(4, 4)
        assert fully_connected_layers(nn.Sequential(layer, nn.ReLU(), layer)) is None
        one, other = nn.Linear(4, 4), nn.Linear(4, 4)
        other.weight = one.weight
        assert fully_connected_layers(nn.Sequential(one, nn.ReLU(), other)) is None

    def test_a_network_with_hooks_is_trained_by_torch(self):
        network = make()
        network[1].register_forward_hook(lambda *_: None)
        assert fully_connected_layers(network) is None

    def test_layers_with_shared_parameters_or_parametrizations_stay_dense(self):
        network = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)))
        network[1].weight = network[0].weight
        torch.nn.utils.parametrizations.weight_norm(network[2])
        mask = {"0.weight": random_mask((64, 64), 0.1), "3.weight": random_mask((64, 64), 0.1)}
        sparse, kept = with_sparse_layers(network, mask)
        assert list(kept) == ["3.weight"]
        assert [isinstance(module, SparseLinear) for module in sparse] == [False, False, False, True]
        assert isinstance(network[3], nn.Linear)

    def test_a_tied_weight_is_trained_dense_and_has_both_its_names(self, digits):
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 10))
        network[3].weight = network[1].weight
        mask = {"1.weight": random_mask((64, 64), 0.3), "4.weight": random_mask((10, 64), 0.3)}
        lane = sparse_lane(request(network, digits, spec(ADAM), mask))
        losses(lane, 5)
        weights = lane.weights()
        assert list(weights) == list(state(network))
        assert torch.equal(weights["1.weight"], weights["3.weight"])
        assert int(weights["1.weight"][~mask["1.weight"]].count_nonzero()) == 0

    def test_a_user_network_is_trained_by_torch_with_sparse_layers(self, digits):
        network = make(nn.Dropout(0.5), nn.LayerNorm(12))
        mask = half(network)
        lanes = [make_lane(request(network, digits, spec(ADAM), mask)) for make_lane in (sparse_lane, PlainLane)]
        torch.testing.assert_close(losses(lanes[0]), losses(lanes[1]), atol=1e-4, rtol=0)

    def test_another_task_is_trained_by_torch(self, digits):
        class Mine(ImageTask):
            pass

        lane = sparse_lane(request(make(), Mine(digits.data), spec(ADAM), half(make())))
        assert isinstance(lane, ModuleLane)

    def test_bad_networks_are_refused(self):
        convolutions = nn.Sequential(nn.Conv2d(1, 2, 8), nn.Flatten(), nn.ReLU())
        with pytest.raises(SpecError, match=r"'sparse' needs fully connected layers .* model 'mine:f' has none"):
            check_network(convolutions, "mine:f", None)
        with pytest.raises(SpecError, match="reads the weight of its layer 'fc' directly"):
            check_network(Reads(), "mine:f", torch.zeros(2, 1, 8, 8))
        check_network(build(ModelSpec(name="conv2"), (1, 8, 8), 10, 0), "conv2", torch.zeros(2, 1, 8, 8))

    def test_the_request_is_left_as_it_was(self, digits):
        network = build(ModelSpec(name="conv2"), (1, 8, 8), 10, seed=1)
        asked = request(network, digits, spec(ADAM, batch_size=10), masked(network, 0.05))
        before = state(asked.network)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            losses(sparse_lane(asked), 2)
        assert all(torch.equal(before[name], value) for name, value in state(asked.network).items())
