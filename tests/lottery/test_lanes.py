"""Tests for trajectories that run side by side while one executor trains their levels together."""

import asyncio
import sys
import time
from collections import Counter
from dataclasses import asdict

import pair_executor
import pytest
import torch

from ticket_search.errors import Diverged, SpecError, UserExit
from ticket_search.lottery.lanes import Ended, Lanes
from ticket_search.lottery.level import Level
from ticket_search.lottery.levels import TrajectoryLevels
from ticket_search.lottery.steps import Wait
from ticket_search.lottery.trajectory import run_trajectory, trajectory_steps
from ticket_search.storage.folder import open_folder
from ticket_search.storage.lease import Leases
from ticket_search.training.executors.executor import Executor
from ticket_search.training.executors.plain import PlainExecutor
from ticket_search.training.executors.registry import executor_for, executor_key
from ticket_search.training.request import TrainRequest


@pytest.fixture
def pair():
    return pair_executor.Pair()


class Side:
    """A test bench that runs named trajectories side by side and records their levels, ends and events."""

    def __init__(self, task, executor):
        self.task, self.lanes = task, Lanes(lambda name: executor)
        self.levels, self.ended, self.events = {}, {}, []

    def add(self, name, spec, store, **options):
        log = lambda event, **fields: self.events.append((name, event, fields["level"]))  # noqa: E731
        steps = trajectory_steps(TrajectoryLevels(spec, self.task, store, log, **options))
        self.lanes.add(name, steps)
        self.levels[name] = []

    def run(self):
        while self.lanes:
            for name, outcome in self.lanes.advance():
                if isinstance(outcome, Ended):
                    self.ended[name] = outcome
                else:
                    self.levels[name].append(outcome)
        return self


def figures(levels):
    """Return all data of the levels except their training times and whether they were reused."""

    def plain(value):
        if isinstance(value, torch.Tensor):
            return value.tolist()
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items() if k not in ("train_seconds", "reused")}
        return [plain(v) for v in value] if isinstance(value, list | tuple) else value

    return [plain(asdict(level)) for level in levels]


def test_trajectories_train_a_shared_level_0_once_and_the_other_levels_together(digits, trajectory, stores, pair):
    specs = {rate: trajectory({"pruning_rate": rate, "rewind_iteration": 7}) for rate in (0.2, 0.5)}
    side, store = Side(digits, pair), stores()
    for rate, spec in specs.items():
        side.add(rate, spec, store)
    side.run()
    alone = {rate: list(run_trajectory(spec, digits, stores())) for rate, spec in specs.items()}
    assert {rate: figures(levels) for rate, levels in side.levels.items()} == {r: figures(a) for r, a in alone.items()}
    assert pair.together[0] == [alone[0.2][0].key]  # the other trajectory waits for this level
    assert {frozenset(keys) for keys in pair.together[1:] if len(keys) == 2} == {
        frozenset({alone[0.2][n].key, alone[0.5][n].key}) for n in (1, 2)
    }
    assert Counter(event for _, event, level in side.events if level == 0) == {
        "level_started": 1,
        "level_finished": 1,
        "level_reused": 1,
    }
    assert [levels[0].reused for levels in side.levels.values()] == [False, True]
    assert all(ended == Ended() for ended in side.ended.values())


def test_more_trajectories_than_lanes(digits, trajectory, stores, pair):
    """Three trajectories with different seeds share no levels: two are trained at a time while the third waits."""
    specs = [trajectory({"max_levels": 1, "controls": {"kinds": ["random_mask"]}}, seed=seed) for seed in range(3)]
    side, store = Side(digits, pair), stores()
    for seed, spec in enumerate(specs):
        side.add(seed, spec, store)
    side.run()
    for seed, spec in enumerate(specs):
        assert figures(side.levels[seed]) == figures(run_trajectory(spec, digits, stores()))
    assert {len(keys) for keys in pair.together[:-1]} == {2}
    assert len({key for keys in pair.together for key in keys}) == 3 * 3


def test_a_diverging_trajectory_does_not_end_the_others(digits, trajectory, stores, pair):
    side, store = Side(digits, pair), stores()
    side.add("wild", trajectory({"training.optimizer": {"name": "sgd", "lr": 1e30}}), store)
    side.add("tame", trajectory(seed=1), store)
    side.run()
    assert isinstance(side.ended["wild"].error, Diverged)
    with pytest.raises(Diverged):
        side.ended["wild"].result()
    assert [level.number for level in side.levels["tame"]] == [0, 1, 2]


def test_an_exception_fails_all_trajectories_trained_together(digits, trajectory, stores, pair, monkeypatch):
    """The executor cannot tell which trajectory is at fault. All claims are released, so new trajectories can run."""
    side, store = Side(digits, pair), stores()
    for seed in (0, 1):
        side.add(seed, trajectory(seed=seed), store)
    monkeypatch.setattr(type(digits), "score", lambda *_: 1 / 0)
    side.run()
    assert [type(ended.error) for ended in side.ended.values()] == [ZeroDivisionError] * 2
    assert Leases(open_folder(store._root / "leases")).names() == []
    monkeypatch.undo()
    side.add(2, trajectory({"max_levels": 1}), store)
    assert len(side.run().levels[2]) == 2


def test_advance_trains_no_further_than_the_level_that_it_returns(digits, trajectory, stores, pair):
    side = Side(digits, pair)
    side.add("a", trajectory(), stores())
    ((name, level),) = side.lanes.advance()
    assert (name, level.number, len(pair.together), len(side.lanes)) == ("a", 0, 1, 1)
    side.lanes.remove("a")
    assert (len(side.lanes), len(pair.together)) == (0, 1)


def test_closing_in_the_middle_of_a_training_run_releases_its_claim(digits, trajectory, stores, pair):
    store, side = stores(), Side(digits, pair)
    steps = trajectory_steps(TrajectoryLevels(trajectory(), digits, store))
    request = next(steps)
    assert isinstance(request, TrainRequest)
    side.lanes.add("a", steps)
    leases = Leases(open_folder(store._root / "leases"))
    assert leases.names() == [request.key]
    side.lanes.close()
    assert leases.names() == []


def test_the_steps_of_a_trajectory(digits, trajectory, stores):
    """One training run yields level 0 and its rewind weights, while a second trajectory waits for this level."""
    store, executor = stores(), PlainExecutor()
    spec = trajectory({"max_levels": 1})
    one, other = (trajectory_steps(TrajectoryLevels(spec, digits, store)) for _ in range(2))
    request, wait = next(one), next(other)
    assert isinstance(request, TrainRequest)
    assert (request.executor, request.level.mask, request.task) == ("plain", {}, digits)
    assert isinstance(wait, Wait)
    assert 0 < wait.seconds <= 0.2
    executor.submit(request)
    ((done, outputs),) = executor.advance()
    assert done is request
    level = one.send(outputs)
    assert isinstance(level, Level)
    same = next(other)
    assert (same.key, same.reused, level.reused) == (level.key, True, False)


def test_waiting_for_a_claimed_level_does_not_busy_wait(digits, trajectory, stores, pair):
    """While another owner holds the claim on a level, the level is requested again only after a pause."""
    store, side = stores(), Side(digits, pair)
    spec = trajectory({"max_levels": 1})
    levels = TrajectoryLevels(spec, digits, store)
    claim = store.claim(levels.context.level_key(0))
    asked, ask = [], store.claim

    def counted(key):
        asked.append(key)
        if len(asked) == 3:
            claim.__exit__(None, None, None)
        return ask(key)

    store.claim = counted
    started = time.monotonic()
    side.lanes.add("a", trajectory_steps(levels))
    assert [name for name, _ in side.lanes.advance()] == ["a"]
    assert len(asked) == 3
    assert time.monotonic() - started >= 2 * 0.1


class TestExecutors:
    @pytest.mark.parametrize("name", ["plain", "pair_executor:Pair"])
    def test_are_found_by_name(self, name):
        executor = executor_for(name)
        assert isinstance(executor, Executor)
        assert executor.name == name

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            (
                "sparce",
                "did you mean 'sparse'.*known: plain, sparse, stacked, package.module:function",
            ),
            ("pair_executor:Single", "the module has no function 'Single'"),
            ("collections:OrderedDict", "the function returned OrderedDict.*, not a ticket_search.training.executors"),
        ],
    )
    def test_unknown_or_invalid_names_are_refused(self, name, message):
        with pytest.raises(SpecError, match=message):
            executor_for(name)

    def test_a_users_executor_has_its_own_level_keys(self, digits, trajectory, stores):
        plain, auto, own = (
            list(run_trajectory(trajectory({"max_levels": 1, "training.executor": name}), digits, stores()))
            for name in ("plain", "auto", "pair_executor:Pair")
        )
        assert [level.key for level in plain] == [level.key for level in auto]
        assert not {level.key for level in plain} & {level.key for level in own}
        assert [level.curve for level in plain] == [level.curve for level in own]
        assert executor_key("plain") == {"name": "plain", "width": 1}
        assert set(executor_key("pair_executor:Pair")) == {"name", "source"}


def test_an_exception_that_is_no_exception_fails_only_its_trajectory(digits, trajectory, stores, monkeypatch):
    def cancelled(executor):
        raise asyncio.CancelledError

    side = Side(digits, PlainExecutor())
    monkeypatch.setattr(PlainExecutor, "advance", cancelled)
    side.add("leaves", trajectory(), stores())
    side.run()
    assert isinstance(side.ended["leaves"].error, UserExit)
    assert str(side.ended["leaves"].error).startswith("CancelledError was raised by the code of a network")


@pytest.mark.parametrize("name", ["plain", "pair"])
def test_sys_exit_in_a_users_code_fails_only_its_trajectory(digits, trajectory, stores, pair, monkeypatch, name):
    executor = {"plain": PlainExecutor(), "pair": pair}[name]
    side = Side(digits, executor)
    with monkeypatch.context() as patch:
        patch.setattr(type(executor), "advance", lambda executor: sys.exit("no licence"))
        side.add("leaves", trajectory(), stores())
        side.run()
    side.lanes = Lanes(lambda name: PlainExecutor())
    side.add("stays", trajectory(), stores())
    side.run()
    assert isinstance(side.ended["leaves"].error, UserExit)
    assert str(side.ended["leaves"].error).endswith("called sys.exit('no licence')")
    assert side.ended["stays"] == Ended()


def test_a_systemexit_from_ray_does_not_fail_the_trajectory(digits, trajectory, stores, monkeypatch):
    def terminated(executor):
        error = SystemExit(1)
        error.ray_terminate_msg = "The process receives a SIGTERM."
        raise error

    monkeypatch.setattr(PlainExecutor, "advance", terminated)
    with pytest.raises(SystemExit):
        list(run_trajectory(trajectory(), digits, stores()))
