"""The stacked executor: levels of one architecture that are trained together, and as if each were alone."""

import copy
import dataclasses

import pytest
import torch
from test_checkpoints import Killed, Saved, assert_same
from test_sparse import masked, request
from test_train import ADAM, MOMENTUM, SGD, half, make, same, spec
from torch import nn
from trainings import train_levels

from ticket_search.config.trajectory import AugmentSpec, DatasetSpec, ModelSpec, OptimizerSpec
from ticket_search.data.dataset import load_dataset
from ticket_search.errors import SpecError
from ticket_search.models import build
from ticket_search.tasks.images import ImageTask
from ticket_search.training.executors import stacked
from ticket_search.training.executors.stacked import StackedExecutor, check_network


def train_together(*requests):
    """Train requests together, and return their outputs in the same order."""
    executor, outputs = StackedExecutor(), {}
    for asked in requests:
        executor.submit(asked)
    while len(outputs) < len(requests):
        outputs.update(executor.advance())
    return [outputs[asked] for asked in requests]


def asked(
    data, optimizer=ADAM, seed=0, density=0.4, batch_size=64, checkpoints=None, network=None, iterations=30, **fields
):
    network = network or build(ModelSpec(name="lenet_32_24"), (1, 8, 8), 10, seed=seed)
    mask = masked(network, density) if density < 1 else None
    made = request(network, data, spec(optimizer, iterations=iterations, batch_size=batch_size), mask, **fields)
    return dataclasses.replace(made, level=dataclasses.replace(made.level, seed=seed), checkpoints=checkpoints)


def close(found, expected, tolerance=1e-4):
    assert [point.iteration for point in found.curve] == [point.iteration for point in expected.curve]
    for point, other in zip(found.curve, expected.curve, strict=True):
        assert point.train_loss == pytest.approx(other.train_loss, abs=tolerance)
        assert point.val_loss == pytest.approx(other.val_loss, abs=tolerance)
    assert found.test_loss == pytest.approx(expected.test_loss, abs=tolerance)
    assert list(found.weights) == list(expected.weights)
    for name, value in found.weights.items():
        torch.testing.assert_close(value, expected.weights[name], atol=max(5e-3, tolerance), rtol=0)


def train_plain(made):
    (outputs,) = train_levels([made.level], copy.deepcopy(made.network), made.task, made.training)
    return outputs


class TestAgreementWithPlain:
    @pytest.mark.parametrize("optimizer", [ADAM, MOMENTUM, SGD], ids=["adam", "momentum", "sgd"])
    def test_levels_of_different_density_seed_length_and_start(self, digits, optimizer):
        made = [
            asked(digits, optimizer, seed=0, density=1.0),
            asked(digits, optimizer, seed=1, density=0.2, iterations=17),
            asked(digits, optimizer, seed=2, density=0.05, start=8, shift=5),
            asked(digits, optimizer, seed=0, density=0.2, keep=(4, 30)),
        ]
        outputs = train_together(*made)
        for found, one in zip(outputs, made, strict=True):
            close(found, train_plain(one))
            for name, kept in one.level.mask.items():
                assert int(found.weights[name][~kept].count_nonzero()) == 0
        assert list(outputs[3].kept) == [4, 30]
        assert outputs[1].iterations == 17
        assert outputs[2].iterations == 22

    def test_settings_that_differ_between_lanes(self, digits):
        one = OptimizerSpec(name="sgd", lr=0.1, momentum=0.9, weight_decay=1e-3)
        other = OptimizerSpec(name="sgd", lr=0.02)
        made = [asked(digits, one), asked(digits, other), asked(digits, ADAM), asked(digits, one, batch_size=16)]
        for found, level in zip(train_together(*made), made, strict=True):
            close(found, train_plain(level))

    @pytest.mark.parametrize("name", ["conv2", "resnet8"])
    def test_networks_with_convolutions_and_batch_norm(self, name, digits):
        made = [
            asked(
                digits,
                SGD,
                seed=seed,
                network=build(ModelSpec(name=name), (1, 8, 8), 10, seed),
                batch_size=8,
                iterations=6,
            )
            for seed in (0, 1)
        ]
        for found, level in zip(train_together(*made), made, strict=True):
            close(found, train_plain(level), tolerance=2e-2)

    def test_batch_norm_is_in_training_mode_after_an_evaluation(self, digits):
        made = [
            dataclasses.replace(one, training=spec(SGD, batch_size=32, iterations=20, evaluate_every=2))
            for one in (
                asked(digits, SGD, seed=seed, network=build(ModelSpec(name="resnet8"), (1, 8, 8), 10, seed))
                for seed in (0, 1)
            )
        ]
        for found, level in zip(train_together(*made), made, strict=True):
            expected = train_plain(level)
            assert found.weights["bn.num_batches_tracked"] == expected.weights["bn.num_batches_tracked"] == 20
            close(found, expected, tolerance=5e-2)

    def test_a_parameter_without_gradient_is_not_trained(self, digits):
        network = make()
        network[1].weight.requires_grad_(False)
        made = request(network, digits, spec(ADAM))
        (outputs,) = train_together(made)
        assert torch.equal(outputs.weights["1.weight"], network[1].weight)
        assert not torch.equal(outputs.weights["3.weight"], network[3].weight)

    def test_buffers_outside_the_state_dict_are_those_of_each_network(self, digits):
        class Scaled(nn.Sequential):
            def __init__(self, scale):
                super().__init__(nn.Flatten(), nn.Linear(64, 10))
                self.register_buffer("scale", torch.tensor(scale), persistent=False)

            def forward(self, images):
                return super().forward(images) * self.scale

        made = []
        for scale in (1.0, 5.0):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                made.append(request(Scaled(scale), digits, spec(SGD)))
        for found, level in zip(train_together(*made), made, strict=True):
            close(found, train_plain(level))

    def test_networks_of_different_names_do_not_share_a_stack(self, digits):
        class Signed(nn.Sequential):
            sign = 1

            def forward(self, images):
                return super().forward(images) * self.sign

        networks = [Signed(nn.Flatten(), nn.Linear(64, 10)) for _ in range(2)]
        networks[1].sign = -1
        made = [
            dataclasses.replace(request(network, digits, spec(SGD)), model=name)
            for network, name in zip(networks, "ab", strict=True)
        ]
        for found, level in zip(train_together(*made), made, strict=True):
            close(found, train_plain(level))

    def test_augmented_images(self):
        augmented = DatasetSpec(name="digits", validation=300, augment=AugmentSpec(crop=1, flip=True))
        task = ImageTask(load_dataset(augmented, None))
        made = [asked(task, seed=seed) for seed in (0, 1)]
        for found, level in zip(train_together(*made), made, strict=True):
            close(found, train_plain(level))

    def test_pruned_weights_keep_the_values_they_are_held_at(self, digits):
        made = asked(digits, density=0.5)
        network = made.network
        weights = {name: value.clone() for name, value in network.state_dict().items()}
        made = dataclasses.replace(made, level=dataclasses.replace(made.level, weights=weights))
        (outputs,) = train_together(made)
        for name, kept in made.level.mask.items():
            assert torch.equal(outputs.weights[name][~kept], weights[name][~kept])
        close(outputs, train_plain(made))

    def test_a_tied_weight(self, digits):
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 10))
        network[3].weight = network[1].weight
        mask = {"1.weight": half(network)["1.weight"]}
        made = request(network, digits, spec(ADAM), mask)
        (outputs,) = train_together(made)
        assert torch.equal(outputs.weights["1.weight"], outputs.weights["3.weight"])
        close(outputs, train_plain(made))


class TestBits:
    def test_neighbors_lanes_and_widths_do_not_matter(self, digits):
        expected = train_together(asked(digits, keep=(9,)))[0]
        others = [
            asked(digits, seed=seed, density=d) for seed, d in ((3, 1.0), (4, 0.1), (5, 0.5), (6, 0.02), (7, 0.3))
        ]
        for width in (2, 3, 4, 6):
            for lane in {0, width - 1}:
                made = asked(digits, keep=(9,))
                together = others[: width - 1]
                outputs = train_together(*together[:lane], made, *together[lane:])
                assert_same(outputs[lane], expected)

    def test_a_lane_is_filled_while_others_train(self, digits):
        expected = [train_together(asked(digits, seed=seed, iterations=n))[0] for seed, n in enumerate((30, 11, 24))]
        executor, made = StackedExecutor(), [asked(digits, seed=s, iterations=n) for s, n in enumerate((30, 11, 24))]
        executor.submit(made[0])
        executor.submit(made[1])
        outputs = dict(executor.advance())
        assert list(outputs) == [made[1]]
        executor.submit(made[2])
        while len(outputs) < 3:
            outputs.update(executor.advance())
        for one, other in zip(made, expected, strict=True):
            assert_same(outputs[one], other)

    @pytest.mark.parametrize("optimizer", [ADAM, MOMENTUM], ids=["adam", "momentum"])
    def test_a_level_that_resumes_has_the_same_bits(self, digits, optimizer):
        expected = train_together(asked(digits, optimizer, keep=(3, 17)))[0]
        for kill_after in (0, 7, 20):
            saved = Saved(kill_after)
            with pytest.raises(Killed):
                train_together(asked(digits, seed=9), asked(digits, optimizer, checkpoints=saved, keep=(3, 17)))
            saved.left = None
            resumed = asked(digits, optimizer, checkpoints=saved, keep=(3, 17))
            assert_same(train_together(resumed, asked(digits, seed=8))[0], expected)

    def test_a_network_with_batch_norm_resumes_with_the_same_bits(self, digits):
        def made(checkpoints=None):
            network = build(ModelSpec(name="resnet8"), (1, 8, 8), 10, 0)
            return asked(digits, SGD, network=network, batch_size=8, iterations=6, checkpoints=checkpoints)

        saved = Saved(2)
        expected = train_together(made())[0]
        with pytest.raises(Killed):
            train_together(made(saved))
        saved.left = None
        assert_same(train_together(made(saved))[0], expected)

    def test_a_level_that_diverges_ends_alone(self, digits):
        diverging = asked(digits, OptimizerSpec(name="sgd", lr=1e30), seed=1)
        found, other = train_together(asked(digits, SGD), diverging)
        assert other.diverged
        assert not found.diverged
        assert_same(found, train_together(asked(digits, SGD))[0])

    def test_blocks_of_a_gpu(self, digits, monkeypatch):
        """Spare lanes change nothing about the others. The test pads stacks on the CPU as on a GPU."""
        expected = train_together(asked(digits), asked(digits, seed=1))
        monkeypatch.setattr(stacked, "_width", lambda lanes, device: -(-lanes // 4) * 4)
        for found, other in zip(train_together(asked(digits), asked(digits, seed=1)), expected, strict=True):
            assert_same(found, other)

    def test_the_network_of_another_request_is_not_changed(self, digits):
        first, second = asked(digits), asked(digits, seed=1)
        before = {name: value.clone() for name, value in second.network.state_dict().items()}
        train_together(first)
        assert same(before, dict(second.network.state_dict()))


class Dropping(nn.Sequential):
    pass


def test_networks_that_cannot_be_stacked_are_refused():
    images = torch.zeros(2, 1, 8, 8)
    with pytest.raises(SpecError, match="'stacked' trains only fully connected ReLU networks on the CPU"):
        check_network(build(ModelSpec(name="conv2"), (1, 8, 8), 10, 0), "conv2", on_cpu=True, example=images)
    check_network(build(ModelSpec(name="conv2"), (1, 8, 8), 10, 0), "conv2", on_cpu=False, example=images)
    check_network(build(ModelSpec(name="resnet8"), (1, 8, 8), 10, 0), "resnet8", on_cpu=False, example=images)
    check_network(make(), "mine:f", on_cpu=True, example=images)
    with pytest.raises(SpecError, match="model 'mine:f' draws random numbers in its forward pass"):
        check_network(make(nn.Dropout(0.5)), "mine:f", on_cpu=False, example=images)
    odd = nn.Sequential(nn.Linear(8, 2, dtype=torch.float64), nn.Linear(2, 2))
    with pytest.raises(SpecError, match=r"needs float32 parameters, but '0.weight' of model 'mine:f' is torch.float64"):
        check_network(odd, "mine:f", on_cpu=False, example=images)
    with pytest.raises(SpecError, match="classifiers of images only"):
        check_network(make(), "mine:f", on_cpu=True, example=None)


def test_a_failure_drops_all_requests(digits):
    executor = StackedExecutor()
    made = asked(digits)
    executor.submit(made)
    executor.submit(asked(digits, checkpoints=Saved(0)))
    with pytest.raises(Killed):
        executor.advance()
    executor.submit(asked(digits, seed=2))
    ((done, _),) = executor.advance()
    assert done.level.seed == 2
