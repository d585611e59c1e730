import math
import random

import numpy as np
import pytest
import torch
from torch import nn
from trainings import evaluate, train_levels

from ticket_search.config.trajectory import OptimizerSpec, ScheduleSpec, TrainingSpec
from ticket_search.pruning.masks import apply_mask
from ticket_search.tasks.images import ImageTask
from ticket_search.training import lane as module
from ticket_search.training.request import LevelInputs

ADAM = OptimizerSpec(name="adam", lr=2e-3, weight_decay=1e-2)
MOMENTUM = OptimizerSpec(name="sgd", lr=0.1, momentum=0.9, weight_decay=1e-2)
SGD = OptimizerSpec(name="sgd", lr=0.1)


def spec(optimizer=SGD, iterations=30, evaluate_every=10, batch_size=64, **schedule):
    return TrainingSpec(
        optimizer=optimizer,
        schedule=ScheduleSpec(**schedule),
        batch_size=batch_size,
        iterations=iterations,
        evaluate_every=evaluate_every,
    )


def make(*middle, seed=0):
    """Return a network with 64 inputs, 12 hidden units and 10 outputs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), *middle, nn.ReLU(), nn.Linear(12, 10))


def state(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def inputs(network, mask=None, **fields):
    weights = state(network)
    return LevelInputs(weights=apply_mask(mask, weights) if mask else weights, mask=mask or {}, seed=5, **fields)


def half(network):
    generator = torch.Generator().manual_seed(1)
    names = [name for name, value in network.named_parameters() if value.ndim == 2]
    return {n: torch.rand(network.get_parameter(n).shape, generator=generator) < 0.5 for n in names}


def train(network, data, training, level=None):
    (outputs,) = train_levels([level or inputs(network)], network, data, training)
    return outputs


def same(a, b):
    """Return whether two sets of weights are bit-identical and have the same names in the same order."""
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def curve(outputs):
    return [(p.iteration, p.train_loss, p.val_loss, p.val_metric) for p in outputs.curve]


class Watched:
    """A wrapper around a data set that calls `watch(iteration)` whenever a batch is requested."""

    def __init__(self, task, watch):
        self.data, self.watch = task.data, watch
        self.batches, self.evaluation_batch_size = task.data.batches, task.data.evaluation_batch_size

    def stream(self, seed, batch_size):
        self.inner = self.data.stream(seed, batch_size)
        return self

    def batch(self, iteration):
        self.watch(iteration)
        return self.inner.batch(iteration)


class TestTheMask:
    @pytest.mark.parametrize("optimizer", [ADAM, MOMENTUM, SGD], ids=["adam", "momentum", "sgd"])
    def test_pruned_weights_are_zero_after_every_step(self, digits, optimizer):
        network = make()
        mask = half(network)
        off = []

        def watch(iteration):
            parameters = dict(network.named_parameters())
            off.append(sum(int(parameters[name][~kept].count_nonzero()) for name, kept in mask.items()))

        outputs = train(network, ImageTask(Watched(digits, watch)), spec(optimizer), inputs(network, mask))
        assert off == [0] * 30
        assert sum(int(outputs.weights[name][~kept].count_nonzero()) for name, kept in mask.items()) == 0

    def test_without_a_mask_the_weights_are_trained(self, digits):
        """This shows that the previous test is not vacuous: the gradients of pruned weights are not zero."""
        network = make()
        mask = half(network)
        level = inputs(network, mask)
        outputs = train(network, digits, spec(), LevelInputs(weights=level.weights, mask={}, seed=5))
        assert sum(int(outputs.weights[name][~kept].count_nonzero()) for name, kept in mask.items()) > 100

    def test_surviving_weights_and_biases_are_trained(self, digits):
        network = make()
        mask = half(network)
        level = inputs(network, mask)
        weights = train(network, digits, spec(), level).weights
        moved = {name: int((weights[name] != level.weights[name]).sum()) for name in weights}
        assert moved["3.bias"] == 10
        assert moved["3.weight"] == int(mask["3.weight"].sum())

    def test_a_tied_weight_is_pruned_under_both_its_names(self, digits):
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 10))
        network[3].weight = network[1].weight
        mask = {"1.weight": torch.arange(64 * 64).reshape(64, 64) % 2 == 0}
        off = []

        def watch(iteration):
            off.append(int(network[1].weight[~mask["1.weight"]].count_nonzero()))

        train(network, ImageTask(Watched(digits, watch)), spec(iterations=3), inputs(network, mask))
        assert off == [0, 0, 0]


class TestTheCurve:
    def test_points_are_at_multiples_of_the_interval_and_at_the_end(self, digits):
        outputs = train(make(), digits, spec(iterations=25, evaluate_every=10))
        assert [p.iteration for p in outputs.curve] == [10, 20, 25]
        assert (outputs.iterations, outputs.diverged) == (25, False)

    def test_a_later_start_does_not_shift_the_points(self, digits):
        network = make()
        outputs = train(network, digits, spec(iterations=25), inputs(network, start=13))
        assert [p.iteration for p in outputs.curve] == [20, 25]
        assert outputs.iterations == 12

    def test_an_interval_longer_than_the_training(self, digits):
        assert [p.iteration for p in train(make(), digits, spec(iterations=5, evaluate_every=100)).curve] == [5]

    def test_the_last_point_is_of_the_last_weights(self, digits):
        network = make()
        outputs = train(network, digits, spec())
        network.load_state_dict(outputs.weights)
        assert evaluate(network, digits, "validation") == (outputs.curve[-1].val_loss, outputs.curve[-1].val_metric)
        assert evaluate(network, digits, "test") == (outputs.test_loss, outputs.test_metric)

    def test_the_training_loss_is_the_mean_since_the_last_point(self, digits):
        each = [p.train_loss for p in train(make(), digits, spec(evaluate_every=1, iterations=6)).curve]
        points = [p.train_loss for p in train(make(), digits, spec(evaluate_every=4, iterations=6)).curve]
        assert points == pytest.approx([sum(each[:4]) / 4, sum(each[4:]) / 2], rel=1e-6)

    def test_evaluating_changes_nothing(self, digits):
        network = make(nn.BatchNorm1d(12), nn.Dropout(0.5))
        often = train(network, digits, spec(evaluate_every=1), inputs(make(nn.BatchNorm1d(12), nn.Dropout(0.5))))
        once = train(network, digits, spec(evaluate_every=30), inputs(make(nn.BatchNorm1d(12), nn.Dropout(0.5))))
        assert same(often.weights, once.weights)
        assert often.weights["2.num_batches_tracked"].item() == 30

    def test_the_early_stop_iteration_is_the_first_of_the_lowest_validation_loss(self, digits):
        still = spec(OptimizerSpec(name="sgd", lr=1e-30), iterations=30)
        outputs = train(make(), digits, still)
        assert len({p.val_loss for p in outputs.curve}) == 1
        assert outputs.early_stop_iteration == 10

    def test_the_early_stop_accuracy_is_of_the_weights_at_that_iteration(self, digits):
        network = make()
        wild = spec(OptimizerSpec(name="sgd", lr=0.4, momentum=0.9), iterations=40, evaluate_every=1)
        outputs = train(network, digits, wild, inputs(network, keep=tuple(range(41))))
        losses = [p.val_loss for p in outputs.curve]
        best = losses.index(min(losses)) + 1
        assert outputs.early_stop_iteration == best
        assert best < 40
        network.load_state_dict(outputs.kept[best])
        assert outputs.early_stop_test_metric == evaluate(network, digits, "test")[1]
        assert outputs.early_stop_test_metric != outputs.test_metric


class TestEvaluate:
    def test_a_mean_over_all_images(self, digits):
        network = make().eval()
        logits, labels = [], []
        for images, batch in digits.data.batches("validation"):
            logits.append(network(images).detach())
            labels.append(batch)
        logits, labels = torch.cat(logits), torch.cat(labels)
        loss, accuracy = evaluate(network, digits, "validation")
        assert loss == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), rel=1e-5)
        assert accuracy == int((logits.argmax(1) == labels).sum()) / 300

    def test_buffers_are_unchanged(self, digits):
        network = make(nn.BatchNorm1d(12)).train()
        before = state(network)
        evaluate(network, digits, "test")
        assert same(state(network), before)


class TestDivergence:
    def test_a_loss_that_is_not_finite_ends_the_training(self, digits):
        outputs = train(make(), digits, spec(OptimizerSpec(name="sgd", lr=1e30), iterations=50))
        assert outputs.diverged is True
        assert (outputs.iterations, [p.iteration for p in outputs.curve]) == (10, [10])
        assert not math.isfinite(outputs.curve[0].val_loss)
        assert (outputs.early_stop_iteration, np.isnan(outputs.test_metric)) == (-1, True)

    def test_an_infinite_loss_between_two_evaluations_is_noticed(self, digits):
        """One batch with an infinite loss is enough, even if later losses are finite."""

        class Blind(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer, self.calls = nn.Linear(64, 10), 0
                self.penalty = torch.tensor([-torch.inf] + [0.0] * 9)

            def forward(self, images):
                self.calls += self.training
                logits = self.layer(images.flatten(1))
                return logits + self.penalty if self.training and self.calls == 13 else logits

        outputs = train(Blind(), digits, spec())
        assert (outputs.diverged, outputs.iterations) == (True, 20)
        assert (outputs.curve[-1].train_loss, outputs.curve[-1].val_loss < 3) == (float("inf"), True)


class TestStartAndStop:
    def test_data_and_schedule_start_at_the_given_iteration(self, digits, monkeypatch):
        asked, rated = [], []
        rate = module.learning_rate
        monkeypatch.setattr(module, "learning_rate", lambda t, i: rated.append(i) or rate(t, i))
        network = make()
        train(network, ImageTask(Watched(digits, asked.append)), spec(), inputs(network, start=25))
        assert asked == [25, 26, 27, 28, 29]
        assert rated == [25, 26, 27, 28, 29]

    @pytest.mark.parametrize("k", [1, 13, 29])
    @pytest.mark.parametrize(
        "middle", [(), (nn.Dropout(0.5),), (nn.BatchNorm1d(12),)], ids=["plain", "dropout", "batch_norm"]
    )
    def test_training_resumed_from_kept_weights_yields_the_same_weights(self, digits, k, middle):
        network = make(*middle)
        training = spec(name="cosine", warmup=5)
        whole = train(network, digits, training, inputs(make(*middle), keep=(k,)))
        rest = train(network, digits, training, LevelInputs(weights=whole.kept[k], mask={}, seed=5, start=k))
        assert same(rest.weights, whole.weights)
        assert curve(rest)[-1][2:] == curve(whole)[-1][2:]

    def test_kept_weights_are_those_after_that_many_updates(self, digits):
        network = make()
        whole = train(network, digits, spec(), inputs(make(), keep=(0, 7, 30)))
        assert list(whole.kept) == [0, 7, 30]
        assert same(whole.kept[0], state(make()))
        assert same(whole.kept[30], whole.weights)
        assert same(whole.kept[7], train(network, digits, spec(iterations=7)).weights) is False
        assert same(whole.kept[7], train(network, digits, spec(), inputs(make(), stop=7)).weights)

    def test_a_stop_does_not_change_the_schedule(self, digits):
        network = make()
        decaying = spec(name="cosine", warmup=3)
        whole = train(network, digits, decaying, inputs(make(), keep=(12,)))
        stopped = train(network, digits, decaying, inputs(make(), stop=12))
        assert same(stopped.weights, whole.kept[12])
        assert ([p.iteration for p in stopped.curve], stopped.iterations) == ([10, 12], 12)


class TestReproducibility:
    @pytest.mark.parametrize("optimizer", [ADAM, MOMENTUM], ids=["adam", "momentum"])
    def test_a_second_training_run_is_bit_identical(self, digits, optimizer):
        network = make(nn.Dropout(0.5))
        first = train(network, digits, spec(optimizer), inputs(make(nn.Dropout(0.5))))
        torch.rand(7)
        train(network, digits, spec(iterations=3), inputs(make(nn.Dropout(0.5), seed=9)))
        again = train(network, digits, spec(optimizer), inputs(make(nn.Dropout(0.5))))
        assert same(first.weights, again.weights)
        assert curve(first) == curve(again)

    def test_data_order_and_dropout_depend_on_the_seed(self, digits):
        network = make(nn.Dropout(0.5))
        results = [
            train(
                network, digits, spec(batch_size=b), LevelInputs(weights=state(make(nn.Dropout(0.5))), mask={}, seed=s)
            )
            for s, b in ((0, 64), (1, 64))
        ]
        assert same(results[0].weights, results[1].weights) is False

    def test_every_iteration_has_a_new_dropout_mask(self, digits):
        seen = []

        class Noise(nn.Dropout):
            def forward(self, x):
                out = super().forward(x)
                if self.training:
                    seen.append(tuple((out == 0).flatten().tolist()))
                return out

        class Ones(nn.Module):
            def forward(self, x):
                return x * 0 + 1

        network = nn.Sequential(nn.Flatten(), Ones(), Noise(0.5), nn.Linear(64, 10))
        train(network, digits, spec(iterations=5))
        assert (len(seen), len(set(seen))) == (5, 5)

    def test_the_callers_random_state_is_unchanged(self, digits):
        torch.manual_seed(123)
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        train(make(nn.Dropout(0.5)), digits, spec(iterations=3))
        after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        assert torch.equal(before[0], after[0])
        assert before[1:] == after[1:]

    def test_the_inputs_are_unchanged(self, digits):
        network = make()
        mask = half(network)
        level = inputs(network, mask)
        copies = state(network)
        train(network, digits, spec(), level)
        assert same(level.weights, apply_mask(mask, copies))

    def test_levels_trained_together_do_not_affect_each_other(self, digits):
        network = make()
        levels = [inputs(make(seed=s), half(network)) for s in (1, 2)]
        together = train_levels(levels, network, digits, spec(ADAM))
        alone = [train(network, digits, spec(ADAM), level) for level in levels]
        assert [same(a.weights, b.weights) for a, b in zip(together, alone, strict=True)] == [True, True]
        assert same(alone[0].weights, alone[1].weights) is False

    def test_training_reaches_a_useful_accuracy(self, digits):
        accuracy = train(make(), digits, spec(ADAM, iterations=150)).test_metric
        assert accuracy > 0.7
