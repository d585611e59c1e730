"""A training run that is interrupted at any iteration, any number of times, has bit-identical results."""

import dataclasses
import json

import pytest
import torch
from test_train import ADAM, MOMENTUM, SGD, curve, half, inputs, make, same, spec, train
from torch import nn
from trainings import train_levels

from ticket_search.config.pruning import EarlyBirdSpec
from ticket_search.lottery.early_bird import EarlyBird
from ticket_search.store.level_store import Entry, LevelStore, decode, encode
from ticket_search.tasks.images import ImageTask
from ticket_search.training.checkpoints import TrainingState
from ticket_search.training.request import LevelInputs


class Killed(Exception):
    pass


class Saved:
    """Checkpoints in memory, encoded as in the store.

    After `kill_after` successful saves, the next save raises `Killed` as soon as it has stored its checkpoint.
    """

    seconds = 0.0

    def __init__(self, kill_after=None):
        self.data = None
        self.left = kill_after
        self.iterations = []

    def load(self):
        if self.data is None:
            return None
        entry = decode(self.data)
        return TrainingState(record=entry.record, tensors=entry.tensors)

    def save(self, state):
        self.data = b"".join(encode(Entry(record=state.record, tensors=state.tensors)))
        self.iterations.append(state.iteration)
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Killed


def assert_same(outputs, expected):
    assert curve(outputs) == curve(expected)
    assert same(outputs.weights, expected.weights)
    assert list(outputs.kept) == list(expected.kept)
    assert all(same(outputs.kept[k], expected.kept[k]) for k in expected.kept)
    for name in ("test_loss", "test_metric", "early_stop_iteration", "early_stop_test_metric", "iterations"):
        assert getattr(outputs, name) == getattr(expected, name), name


@pytest.mark.parametrize("optimizer", [ADAM, MOMENTUM, SGD], ids=["adam", "momentum", "sgd"])
@pytest.mark.parametrize("masked", [False, True])
def test_killed_after_every_iteration(digits, optimizer, masked):
    """Results are bit-identical with batch norm, dropout, a schedule, kept weights and evaluations between kills."""
    training = spec(optimizer, iterations=23, evaluate_every=5, name="step", milestones=(8, 15), warmup=4)
    network = make(nn.BatchNorm1d(12), nn.Dropout(0.3))
    level = inputs(network, half(network) if masked else None, start=2, keep=(2, 7, 20))
    expected = train(network, digits, training, level)
    saved = Saved(kill_after=0)
    for _ in range(30):
        saved.left = 0
        other = make(nn.BatchNorm1d(12), nn.Dropout(0.3), seed=9)  # the network has other weights, as in a new process
        try:
            (outputs,) = train_levels([level], other, digits, training, [saved])
            break
        except Killed:
            continue
    assert saved.iterations == list(range(3, 23))
    assert_same(outputs, expected)


@pytest.mark.parametrize("kill_after", [0, 3, 9, 10, 18])
def test_killed_once(digits, kill_after):
    network, training = make(nn.BatchNorm1d(12)), spec(ADAM, iterations=20, evaluate_every=10)
    level = inputs(network, keep=(0, 5, 20))
    expected = train(network, digits, training, level)
    saved = Saved(kill_after)
    with pytest.raises(Killed):
        train_levels([level], network, digits, training, [saved])
    saved.left = None
    (outputs,) = train_levels([level], network, digits, training, [saved])
    assert saved.iterations[kill_after + 1 :] == list(range(kill_after + 2, 20))
    assert_same(outputs, expected)


def test_the_training_time_includes_all_parts(digits, monkeypatch):
    network, training, saved = make(), spec(iterations=20), Saved(kill_after=10)
    with pytest.raises(Killed):
        train_levels([inputs(network)], network, digits, training, [saved])
    record = decode(saved.data).record
    entry = Entry(record=record | {"seconds": 1000.0}, tensors=decode(saved.data).tensors)
    saved.data = b"".join(encode(entry))
    saved.left = None
    (outputs,) = train_levels([inputs(network)], network, digits, training, [saved])
    assert 1000 < outputs.train_seconds < 1100


def test_checkpoints_are_not_written_more_often_than_asked(digits):
    network, saved = make(), Saved()
    saved.seconds = 3600.0
    train_levels([inputs(network)], network, digits, spec(iterations=20), [saved])
    assert saved.iterations == []


def test_a_state_is_plain_json_and_tensors(digits):
    network, saved = make(), Saved()
    train_levels([inputs(network)], network, digits, spec(ADAM, iterations=12, evaluate_every=5), [saved])
    entry = decode(saved.data)
    assert json.loads(json.dumps(entry.record)) == entry.record
    assert {name.split("/")[0] for name in entry.tensors} == {"weights", "optimizer", "best", "losses"}
    assert entry.tensors["losses"].shape == (1,)


def test_the_store_keeps_a_checkpoint_until_the_level_is_finished(digits, tmp_path, trajectory):
    """Each run is killed in the middle of a level, and the next run resumes it; no checkpoint is left at the end."""
    from ticket_search.lottery.trajectory import run_trajectory

    spec = trajectory({"pruning_rate": 0.5, "rewind_iteration": 20})
    store = LevelStore(tmp_path / "killed")
    events = []

    def log(event, **fields):
        events.append((event, fields.get("level", fields.get("iteration"))))

    def run(task):
        return list(run_trajectory(spec, task, store, log=log, checkpoint_seconds=0.0))

    expected = list(run_trajectory(spec, digits, LevelStore(tmp_path / "alone")))
    for at in (5, 25, 30, 35):
        with pytest.raises(Killed):
            run(ImageTask(_Killing(digits.data, at)))
    levels = run(digits)
    assert [event for event in events if event[0] in ("level_continued", "level_finished")] == [
        ("level_continued", 5),
        ("level_continued", 25),
        ("level_continued", 30),
        ("level_continued", 35),
        ("level_finished", 0),
        ("level_finished", 1),
        ("level_finished", 2),
    ]
    for level, other in zip(levels, expected, strict=True):
        assert level.curve == other.curve
        assert all(torch.equal(level.mask[name], other.mask[name]) for name in other.mask)
        assert level.test_loss == other.test_loss
    assert list((tmp_path / "killed" / "checkpoints").iterdir()) == []


class _Killing:
    """A wrapper around a data set that simulates a kill at one iteration."""

    def __init__(self, data, at):
        self.data, self.at = data, at
        self.train, self.fingerprint = data.train, data.fingerprint
        self.batches = data.batches

    def __getattr__(self, name):
        return getattr(self.data, name)

    def stream(self, seed, batch_size):
        self.inner = self.data.stream(seed, batch_size)
        return self

    def batch(self, iteration):
        if iteration == self.at:
            raise Killed
        return self.inner.batch(iteration)


def test_resuming_does_not_change_the_inputs(digits):
    network = make()
    level = LevelInputs(weights={n: v.clone() for n, v in network.state_dict().items()}, mask={}, seed=1)
    before = {name: value.clone() for name, value in level.weights.items()}
    saved = Saved(kill_after=3)
    with pytest.raises(Killed):
        train_levels([level], network, digits, spec(iterations=9), [saved])
    saved.left = None
    train_levels([level], network, digits, spec(iterations=9), [saved])
    assert same(level.weights, before)


def test_a_killed_early_bird_run_ends_at_the_same_iteration(digits):
    """After a kill, early-bird still compares new masks with masks from before the kill."""
    training = spec(ADAM, iterations=40, evaluate_every=7)
    network = make(nn.ReLU())
    start, seen = inputs(network), {}

    def draw(weights):
        """Return a random mask for each new set of weights, but the same mask from the fourth set on."""
        place = seen.setdefault(weights["1.weight"].sum().item(), len(seen))
        generator = torch.Generator().manual_seed(min(place, 3))
        return {"1.weight": torch.rand(weights["1.weight"].shape, generator=generator) > 0.5}

    def watched():
        watch = EarlyBird(EarlyBirdSpec(threshold=0.1, window=3, every=3), draw)
        return dataclasses.replace(start, watch=watch)

    level = watched()
    expected = train(network, digits, training, level)
    assert expected.iterations == 3 * 6
    saved, kills, other = Saved(kill_after=0), 0, None
    while other is None:
        saved.left = 0
        again = watched()
        try:
            (other,) = train_levels([again], network, digits, training, [saved])
        except Killed:
            kills += 1
    assert kills == 17
    assert_same(other, expected)
    assert again.watch.distances == level.watch.distances
