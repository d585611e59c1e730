"""Tests for copies of a level, trained with other data orders, and for the errors on the line between two copies."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from ticket_search.lottery.finished import FinishedTrajectory
from ticket_search.lottery.lanes import finish
from ticket_search.lottery.stability import errors_between
from ticket_search.tasks.images import ImageTask


class Numbers:
    """A data set whose images are single numbers: 1 and 2 for validation, -1 to -4 for testing, all of class 1."""

    evaluation_batch_size = 4

    def batches(self, split, batch_size=None):
        images = [1.0, 2.0] if split == "validation" else [-1.0, -2.0, -3.0, -4.0]
        yield torch.tensor(images)[:, None], torch.ones(len(images), dtype=torch.int64)


def scores(weight, bias):
    """Return a linear network, and weights with which it predicts class 1 for x if ``weight * x + bias > 0``."""
    network = nn.Linear(1, 2)
    values = {"weight": torch.tensor([[0.0], [weight]]), "bias": torch.tensor([0.0, bias])}
    return network, values


def test_the_errors_between_two_networks_by_hand():
    """On the line from 2x - 1 to -2x + 1, the score at p is ``(2 - 4p) x - (1 - 2p)``, which is 0 at p = 0.5."""
    network, one = scores(2.0, -1.0)
    _, other = scores(-2.0, 1.0)
    found = errors_between(one, other, 5, network, ImageTask(Numbers()), "fp32")
    assert [p.position for p in found] == [0.0, 0.25, 0.5, 0.75, 1.0]
    # At p = 0.5 the scores of both classes are 0, so class 0 is predicted.
    assert [p.val_error for p in found] == [0.0, 0.0, 1.0, 1.0, 1.0]
    assert [p.test_error for p in found] == [1.0, 1.0, 1.0, 0.0, 0.0]


def test_biases_are_interpolated_like_weights():
    """On the line from x to x + 10, the bias at position p is 10p, so images above -10p are classified correctly."""
    network, one = scores(1.0, 0.0)
    _, other = scores(1.0, 10.0)
    found = errors_between(one, other, 6, network, ImageTask(Numbers()), "fp32")
    assert [p.test_error for p in found] == [1.0, 0.75, 0.25, 0.0, 0.0, 0.0]


def test_statistics_are_interpolated_and_counters_are_not():
    network = nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2))
    one = {name: value.clone() for name, value in network.state_dict().items()}
    other = {name: value + 2 for name, value in one.items()}
    seen = []
    network.register_forward_hook(lambda *_: seen.append({n: v.clone() for n, v in network.state_dict().items()}))
    errors_between(one, other, 3, network, ImageTask(Numbers()), "fp32")
    middle = seen[2]
    assert torch.equal(middle["1.running_mean"], one["1.running_mean"] + 1)
    assert middle["1.num_batches_tracked"] == one["1.num_batches_tracked"]
    assert not network.training


@pytest.fixture
def trained(bench, trajectory, stores):
    """A function that runs a trajectory and returns its `FinishedTrajectory`, levels and inputs.

    It also clears the bench's records, so that a test sees only the records of its copies.
    """

    def make(**changes):
        spec, store = trajectory({"pruning_rate": 0.5, **changes}, seed=3), stores()
        levels = bench.run(spec, store)
        inputs = list(bench.inputs)
        for seen in (bench.levels, bench.inputs, bench.outputs):
            seen.clear()
        made = FinishedTrajectory(
            spec, bench.task, store, lambda event, **fields: bench.events.append((event, fields["level"]))
        )
        bench.events.clear()
        return made, levels, inputs

    return make


@pytest.mark.parametrize(
    "changes", [{}, {"rewind_iteration": 7, "model.name": "resnet8"}, {"retrain": "learning_rate"}], ids=str
)
def test_copies_start_from_the_tickets_weights_with_other_data_orders(bench, trained, changes):
    made, levels, inputs = trained(**changes)
    copies = [made.train_copy(2, copy) for copy in (0, 1)]
    assert all(torch.equal(given[n], inputs[2][n]) for given in bench.inputs for n in given)
    assert len({3, *(level.seed for level in bench.levels)}) == 3
    assert {level.start for level in bench.levels} == {changes.get("rewind_iteration", 0)}
    assert copies[0].key != copies[1].key
    for copy, out in zip(copies, bench.outputs, strict=True):
        assert all(torch.equal(copy.final_weights[n], w) for n, w in out.weights.items())
        assert all(not copy.final_weights[n][~kept].any() for n, kept in levels[2].mask.items())
        assert copy.iterations == levels[2].iterations
    one, other = (copy.final_weights for copy in copies)
    assert not all(torch.equal(one[n], other[n]) for n in levels[2].mask)


@pytest.mark.parametrize("k", [0, 7])
def test_copies_of_level_0_are_dense_and_start_at_the_rewind_iteration(bench, trained, k):
    made, _, _ = trained(rewind_iteration=k)
    made.train_copy(0, 0)
    (level,), (given,) = bench.levels, bench.inputs
    rewind = finish(made._levels.starts.rewind_weights())
    assert (level.start, level.mask) == (k, {})
    assert all(torch.equal(given[n], rewind[n]) for n in given)
    assert bench.outputs[0].iterations == 40 - k


def test_a_copy_is_trained_once(bench, trained):
    made, _, _ = trained()
    first, again = made.train_copy(1, 0), made.train_copy(1, 0)
    assert len(bench.levels) == 1
    assert again.reused
    assert all(torch.equal(again.final_weights[n], w) for n, w in first.final_weights.items())


def test_errors_between_a_copy_and_itself_are_constant(bench, trained):
    made, _, _ = trained()
    copy = made.train_copy(1, 0)
    found = made.errors_between(copy, copy, 3)
    assert {p.val_error for p in found} == {1 - copy.val_metric}
    assert {p.test_error for p in found} == {1 - copy.test_metric}
    one = made.errors_between(copy, made.train_copy(1, 1), 4)
    assert (one[0].test_error, one[-1].test_error) == (1 - copy.test_metric, 1 - made.train_copy(1, 1).test_metric)


def test_errors_to_a_diverged_copy_are_nan(bench, trained):
    made, _, _ = trained()
    copy = made.train_copy(1, 0)
    found = made.errors_between(copy, dataclasses.replace(copy, diverged=True), 3)
    assert [p.position for p in found] == [0.0, 0.5, 1.0]
    assert all(math.isnan(error) for p in found for error in (p.val_error, p.test_error))


def test_dense_copies_do_not_depend_on_the_pruning(bench, trajectory, stores):
    """Dense copies do not depend on early-bird either: they are always trained to the end."""
    store = stores()
    keys = set()
    for changes in ({}, {"strategy": "global"}, {"early_bird": {"window": 2, "every": 10}}):
        spec = trajectory({"pruning_rate": 0.5, **changes}, seed=3)
        made = FinishedTrajectory(spec, bench.task, store)
        keys.add(made.train_copy(0, 0).key)
    assert len(keys) == 1
    assert len(bench.levels) == 1
    assert bench.outputs[0].iterations == 40
