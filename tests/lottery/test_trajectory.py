import subprocess
import sys
from collections import Counter
from dataclasses import asdict

import pytest
import torch

from ticket_search.config.identity import rewind_key
from ticket_search.errors import Diverged, SpecError
from ticket_search.lottery.trajectory import run_trajectory
from ticket_search.pruning.masks import density, kept_weights
from ticket_search.results.events import read_events
from ticket_search.training.executors import plain
from ticket_search.training.provenance import trained_with


@pytest.fixture
def own_network(tmp_path, monkeypatch):
    """A user's network with batch normalization and dropout."""
    (tmp_path / "own_normed.py").write_text(
        "from torch import nn\n\n\n"
        "def make(image_shape, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2),\n"
        "                         nn.Linear(12, classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield {"model.name": "own_normed:make"}
    sys.modules.pop("own_normed", None)


def figures(levels):
    """Return all data of the levels except their training times and whether they were reused."""
    return [
        {k: v for k, v in asdict(level).items() if k != "reused"}
        | {
            "figures": {name: value for name, value in level.figures.items() if name != "train_seconds"},
            "mask": bits(level.mask),
            "next_mask": bits(level.next_mask or {}),
            "final_weights": {name: value.tolist() for name, value in level.final_weights.items()},
        }
        for level in levels
    ]


def bits(mask):
    return {name: kept.tolist() for name, kept in mask.items()}


class TestLevels:
    def test_layerwise(self, bench, trajectory, stores):
        levels = bench.run(trajectory({"pruning_rate": 0.2, "output_layer_rate": 0.5, "max_levels": 3}), stores())
        # layers of 64 x 16 and 16 x 10 weights, pruned by 20% and 10%
        assert [kept_weights(level.mask) for level in levels] == [1184, 819 + 144, 655 + 130, 524 + 117]
        assert [level.number for level in levels] == [0, 1, 2, 3]

    def test_global(self, bench, trajectory, stores):
        levels = bench.run(trajectory({"pruning_rate": 0.5, "strategy": "global", "max_levels": 3}), stores())
        assert [kept_weights(level.mask) for level in levels] == [1184, 592, 296, 148]

    def test_the_smallest_trained_weights_are_pruned(self, bench, trajectory, stores):
        bench.run(trajectory({"pruning_rate": 0.5, "strategy": "global", "max_levels": 2}), stores())
        for before, after in ((0, 1), (1, 2)):
            mask = {n: w != 0 for n, w in bench.inputs[before].items() if n.endswith("weight")}
            trained = torch.cat([bench.outputs[before].weights[n][kept].abs() for n, kept in mask.items()])
            kept = torch.cat([bench.inputs[after][n][kept] != 0 for n, kept in mask.items()])
            assert trained[~kept].max() < trained[kept].min()

    def test_the_next_mask_is_that_of_the_next_level(self, bench, trajectory, stores):
        levels = bench.run(trajectory({"max_levels": 2}), stores())
        assert levels[0].next_mask is None
        assert bits(levels[1].next_mask) == bits(levels[2].mask)

    def test_figures_are_those_measured_in_training(self, bench, trajectory, stores):
        levels = bench.run(trajectory({"max_levels": 1}), stores())
        assert [level.curve for level in levels] == [outputs.curve for outputs in bench.outputs]
        assert [level.test_metric for level in levels] == [outputs.test_metric for outputs in bench.outputs]
        assert [level.val_metric for level in levels] == [outputs.curve[-1].val_metric for outputs in bench.outputs]
        assert [level.iterations for level in levels] == [40, 40]


class TestTheEnd:
    def test_at_the_highest_level(self, bench, trajectory, stores):
        assert len(bench.run(trajectory({"max_levels": 1}), stores())) == 2

    def test_at_the_lowest_density(self, bench, trajectory, stores):
        spec = trajectory({"pruning_rate": 0.5, "strategy": "global", "min_density": 0.25, "max_levels": None})
        assert [density(level.mask) for level in bench.run(spec, stores())] == [1.0, 0.5, 0.25]

    def test_just_above_the_lowest_density(self, bench, trajectory, stores):
        spec = trajectory({"pruning_rate": 0.5, "strategy": "global", "min_density": 0.251, "max_levels": None})
        assert [density(level.mask) for level in bench.run(spec, stores())] == [1.0, 0.5]

    def test_when_there_is_nothing_left_to_prune(self, bench, trajectory, stores):
        spec = trajectory({"pruning_rate": 0.99, "min_density": 1e-6, "max_levels": None, "training.iterations": 2})
        levels = bench.run(spec, stores())
        assert [int(kept.sum()) for kept in levels[-1].mask.values()] == [1, 1]
        assert [kept_weights(level.mask) for level in levels] == [1184, 12, 2]

    def test_a_batch_larger_than_the_data(self, bench, trajectory, stores):
        with pytest.raises(SpecError, match="batch_size: 2000 is more than the 1137 training images"):
            bench.run(trajectory({"training.batch_size": 2000}), stores())


class TestRewinding:
    @pytest.mark.parametrize("k", [0, 13])
    @pytest.mark.parametrize("strategy", ["layerwise", "global"])
    def test_a_ticket_is_exactly_the_mask_times_the_rewind_weights(
        self, bench, trajectory, stores, own_network, k, strategy
    ):
        spec = trajectory({**own_network, "rewind_iteration": k, "strategy": strategy, "max_levels": 3})
        levels = bench.run(spec, stores())
        rewind = bench.outputs[0].kept[k]
        assert rewind["2.num_batches_tracked"].item() == k
        for level, given in zip(levels[1:], bench.inputs[1:], strict=True):
            assert sorted(given) == sorted(rewind)
            for name, value in given.items():
                expected = rewind[name] * level.mask[name] if name in level.mask else rewind[name]
                assert torch.equal(value, expected)
        assert [level.iterations for level in levels] == [40, 40 - k, 40 - k, 40 - k]

    def test_batch_norm_statistics_are_rewound(self, bench, trajectory, stores):
        bench.run(trajectory({"model.name": "resnet8", "rewind_iteration": 3, "max_levels": 1}), stores())
        dense, ticket = bench.inputs
        statistics = [name for name in dense if "running_" in name or "num_batches" in name]
        assert len(statistics) == 3 * 9
        for name in statistics:
            assert torch.equal(ticket[name], bench.outputs[0].kept[3][name])
            assert not torch.equal(ticket[name], dense[name])
            assert not torch.equal(ticket[name], bench.outputs[0].weights[name])

    def test_iteration_0_is_the_initialization(self, bench, trajectory, stores):
        bench.run(trajectory({"max_levels": 1}), stores())
        dense, ticket = bench.inputs
        assert [torch.equal(w, torch.where(w == 0, w, dense[name])) for name, w in ticket.items()] == [True] * 4

    def test_the_initialization_follows_from_the_seed(self, bench, trajectory, stores):
        for seed in (0, 0, 1):
            bench.run(trajectory({"max_levels": 1}, seed=seed), stores())
        first, same, other = (bench.inputs[i]["fc1.weight"] for i in (0, 2, 4))
        assert (torch.equal(first, same), torch.equal(first, other)) == (True, False)

    def test_rewind_weights_computed_after_level_0_are_bit_identical(self, bench, trajectory, stores, own_network):
        spec = trajectory({**own_network, "rewind_iteration": 13})
        first, later = stores(), stores()
        asked_at_first = bench.run(spec, first)
        bench.run(trajectory(own_network), later, rewind_iterations=(0, 7))
        bench.counts()
        asked_later = bench.run(spec, later)
        assert bench.counts() == {"level_reused": 1, "level_started": 2, "level_finished": 2}
        assert figures(asked_later) == figures(asked_at_first)
        key = rewind_key(asked_later[0].key, 13)
        weights, again = first.load(key).tensors, later.load(key).tensors
        assert [torch.equal(again[name], weights[name]) for name in weights] == [True] * len(weights)

    def test_rewind_weights_for_other_trajectories_are_kept(self, bench, trajectory, stores):
        store = stores()
        dense = bench.run(trajectory({"max_levels": 1}), store, rewind_iterations=[5, 20, 40, 99])[0]
        assert [store.load(rewind_key(dense.key, k)) is not None for k in (0, 5, 20, 40, 99)] == [
            True,
            True,
            True,
            False,
            False,
        ]

    def test_a_rewind_past_the_end_of_training_in_epochs_is_refused(self, bench, trajectory, stores):
        with pytest.raises(
            SpecError, match="rewind_iteration: 17 is not before the end of training at iteration 17; give 0 to 16"
        ):
            bench.run(trajectory({"training.iterations": "1ep", "rewind_iteration": 17}), stores())


class TestTheStore:
    def test_a_second_run_reuses_every_level(self, bench, trajectory, stores):
        store, spec = stores(), trajectory({"rewind_iteration": 5})
        first = bench.run(spec, store)
        assert bench.counts() == {"level_started": 3, "level_finished": 3}
        trained = len(bench.inputs)
        again = bench.run(spec, store)
        assert bench.counts() == {"level_reused": 3}
        assert len(bench.inputs) == trained
        assert figures(again) == figures(first)
        assert ([level.reused for level in first], [level.reused for level in again]) == ([False] * 3, [True] * 3)

    def test_level_0_is_trained_once_per_seed(self, bench, trajectory, stores):
        store = stores()
        for changes in (
            {"pruning_rate": 0.2},
            {"pruning_rate": 0.5},
            {"strategy": "global"},
            {"criterion": "random"},
            {"rewind_iteration": 10},
        ):
            bench.run(trajectory(changes | {"max_levels": 1}), store)
        assert Counter(bench.events) == {
            ("level_started", 0): 1,
            ("level_finished", 0): 1,
            ("level_reused", 0): 4,
            ("level_started", 1): 5,
            ("level_finished", 1): 5,
        }
        bench.events.clear()
        bench.run(trajectory({"max_levels": 1}, seed=1), store)
        assert bench.counts() == {"level_started": 2, "level_finished": 2}

    def test_epochs_and_iterations_of_the_same_length_share_their_levels(self, bench, trajectory, stores):
        store = stores()
        bench.run(trajectory({"training.iterations": "2ep", "training.evaluate_every": "1ep"}), store)
        bench.counts()
        bench.run(trajectory({"training.iterations": 34, "training.evaluate_every": 17}), store)
        assert bench.counts() == {"level_reused": 3}

    def test_a_longer_trajectory_reuses_a_shorter_one(self, bench, trajectory, stores):
        store = stores()
        bench.run(trajectory({"max_levels": 1}), store)
        bench.counts()
        longer = bench.run(trajectory({"max_levels": 3}), store)
        assert bench.counts() == {"level_reused": 2, "level_started": 2, "level_finished": 2}
        assert figures(longer) == figures(bench.run(trajectory({"max_levels": 3}), stores()))

    def test_an_interrupted_trajectory_is_resumed(self, bench, trajectory, stores, digits):
        store, spec = stores(), trajectory({"max_levels": 3})
        half_way = run_trajectory(spec, digits, store)
        next(half_way)
        next(half_way)
        half_way.close()
        rest = bench.run(spec, store)
        assert bench.counts() == {"level_reused": 2, "level_started": 2, "level_finished": 2}
        assert figures(rest) == figures(bench.run(spec, stores()))

    def test_results_do_not_depend_on_earlier_runs_in_the_process(self, bench, trajectory, stores, own_network):
        first = bench.run(trajectory(own_network), stores())
        bench.run(trajectory({"criterion": "random", "training.iterations": 23}, seed=8), stores())
        torch.rand(5)
        assert figures(bench.run(trajectory(own_network), stores())) == figures(first)

    def test_random_masks_follow_from_the_seed_and_the_level(self, bench, trajectory, stores):
        spec = {"criterion": "random", "pruning_rate": 0.5}
        first, again = (bench.run(trajectory(spec), stores()) for _ in range(2))
        other = bench.run(trajectory(spec, seed=1), stores())
        assert bits(first[2].mask) == bits(again[2].mask)
        assert bits(first[1].mask) != bits(other[1].mask)


class TestDivergence:
    def test_is_raised_again_without_training(self, bench, trajectory, stores):
        store, spec = stores(), trajectory({"training.optimizer": {"name": "sgd", "lr": 1e30}})
        for expected in ({"level_started": 1, "level_finished": 1}, {"level_reused": 1}):
            with pytest.raises(Diverged, match="the loss of level 0 was not finite at iteration 20") as error:
                bench.run(spec, store)
            assert (error.value.level, error.value.iteration) == (0, 20)
            assert bench.counts() == expected

    def test_the_levels_before_it_were_yielded(self, bench, trajectory, stores, digits, monkeypatch):
        """Level 2 diverges because the test gives it huge biases; levels 0 and 1 are yielded before that."""

        def poisoned(request):
            if sum(int(kept.sum()) for kept in request.level.mask.values()) == 1184 // 4:
                request.level.weights["fc1.bias"][:] = 1e38
            return train(request)

        train = plain.train
        monkeypatch.setattr(plain, "train", poisoned)
        store, spec, yielded = stores(), trajectory({"pruning_rate": 0.5, "strategy": "global"}), []
        for _ in range(2):
            with pytest.raises(Diverged, match="level 2"):
                yielded.extend(level.number for level in run_trajectory(spec, digits, store))
        assert yielded == [0, 1, 0, 1]


WORKER = """
import sys
from functools import partial
from pathlib import Path
import torch
from ticket_search.tasks.registry import load_task
from ticket_search.lottery.trajectory import run_trajectory
from ticket_search.results.events import EventLog
from ticket_search.config.base import validate
from ticket_search.config.trajectory import TrajectorySpec
from ticket_search.store import level_store

torch.set_num_threads(1)
level_store._POLL_SECONDS = 0.01
folder, raw = Path(sys.argv[1]), eval(sys.argv[2])
spec = validate(TrajectorySpec, raw)
task = load_task(spec, folder)
(folder / f"ready-{sys.argv[3]}").touch()
while len(list(folder.glob("ready-*"))) < 2:
    pass
for level in run_trajectory(spec, task, level_store.LevelStore(folder / "store"), log=EventLog(folder).log):
    print(level.number, level.val_loss)
"""


def test_two_processes_train_each_level_once(trajectory, tmp_path):
    raw = repr(trajectory({"training.iterations": 100, "max_levels": 3}).model_dump(mode="json"))
    command = [sys.executable, "-c", WORKER, str(tmp_path), raw]
    workers = [subprocess.Popen([*command, str(i)], stdout=subprocess.PIPE, text=True) for i in range(2)]
    printed = [worker.communicate(timeout=120)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert printed[0] == printed[1]
    events = Counter((event["event"], event["level"]) for event in read_events(tmp_path))
    assert events == {
        (event, level): 1 for event in ("level_started", "level_finished", "level_reused") for level in range(4)
    }


def test_a_reused_level_keeps_its_training_environment(bench, trajectory, stores, monkeypatch):
    """The key of a level does not depend on versions, on the number of threads or on the device's name."""
    store, spec = stores(), trajectory({"pruning_rate": 0.5, "max_levels": 1})
    elsewhere = {"torch_version": "1.0", "device": "a GPU", "threads": 7, "ticket_search_version": "0.0.1"}
    with monkeypatch.context() as patch:
        patch.setattr("ticket_search.lottery.levels.trained_with", lambda device: elsewhere)
        before = bench.run(spec, store)
    longer = bench.run(trajectory({"pruning_rate": 0.5, "max_levels": 2}), store)
    assert [level.key for level in longer[:2]] == [level.key for level in before]
    assert [{name: level.figures[name] for name in elsewhere} for level in longer] == [
        *[elsewhere] * 2,
        trained_with(torch.device("cpu")),
    ]
