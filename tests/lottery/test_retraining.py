"""Tests for the ways to retrain and reinitialize a ticket, for the pruning schedules and for the criteria."""

import pytest
import torch

from ticket_search.pruning.masks import density, kept_weights
from ticket_search.tasks.images import ImageTask
from ticket_search.training import lane

T = 40
STEP = {"training.schedule": {"name": "step", "milestones": [20], "gamma": 0.5}}


@pytest.fixture
def rates(monkeypatch):
    """The learning rates of all updates, in one list per training run."""
    found = []
    original, start = lane.learning_rate, lane.PlainLane.__init__

    def learning_rate(training, iteration):
        found[-1].append(original(training, iteration))
        return found[-1][-1]

    def begin(self, *arguments):
        found.append([])
        start(self, *arguments)

    monkeypatch.setattr(lane, "learning_rate", learning_rate)
    monkeypatch.setattr(lane.PlainLane, "__init__", begin)
    return found


def masked(weights, mask):
    return {name: w * mask[name] if name in mask else w for name, w in weights.items()}


def equal(one, other):
    return sorted(one) == sorted(other) and all(torch.equal(one[name], other[name]) for name in one)


class TestRetraining:
    K = 10

    def run(self, bench, trajectory, stores, retrain):
        spec = trajectory({**STEP, "retrain": retrain, "rewind_iteration": self.K, "max_levels": 2})
        return bench.run(spec, stores())

    def test_weights_rewinds_the_weights_and_the_schedule(self, bench, trajectory, stores, rates):
        levels = self.run(bench, trajectory, stores, "weights")
        rewind = bench.outputs[0].kept[self.K]
        for level, given in zip(levels[1:], bench.inputs[1:], strict=True):
            assert equal(given, masked(rewind, level.mask))
        assert rates == [[2e-3] * 20 + [1e-3] * 20] + [[2e-3] * 10 + [1e-3] * 20] * 2

    def test_learning_rate_rewinds_only_the_schedule(self, bench, trajectory, stores, rates):
        levels = self.run(bench, trajectory, stores, "learning_rate")
        for number in (1, 2):
            assert equal(bench.inputs[number], masked(bench.outputs[number - 1].weights, levels[number].mask))
        assert rates == [[2e-3] * 20 + [1e-3] * 20] + [[2e-3] * 10 + [1e-3] * 20] * 2

    def test_finetune_rewinds_neither(self, bench, trajectory, stores, rates):
        levels = self.run(bench, trajectory, stores, "finetune")
        for number in (1, 2):
            assert equal(bench.inputs[number], masked(bench.outputs[number - 1].weights, levels[number].mask))
        assert rates == [[2e-3] * 20 + [1e-3] * 20] + [[1e-3] * 30] * 2
        # The data order continues where that of the previous level ended, but iterations are counted from 10, as in the
        # other kinds of retraining.
        assert [(level.start, level.start + level.shift) for level in bench.levels] == [(0, 0), (10, T), (10, T + 30)]
        assert [[p.iteration for p in level.curve] for level in levels] == [[20, 40]] * 3

    def test_finetune_continues_the_data_order(self, bench, trajectory, stores, digits):
        asked = []
        stream = digits.data.stream(0, 64)
        batch, stream.batch = stream.batch, lambda i: asked.append(i) or batch(i)
        bench.task = ImageTask(Spy(digits.data, lambda seed, size: stream))
        self.run(bench, trajectory, stores, "finetune")
        assert asked == list(range(T + 30 + 30))

    def test_all_kinds_train_equally_long(self, bench, trajectory, stores):
        for retrain in ("weights", "learning_rate", "finetune"):
            assert [level.iterations for level in self.run(bench, trajectory, stores, retrain)] == [40, 30, 30]

    @pytest.mark.parametrize("retrain", ["learning_rate", "finetune"])
    def test_a_later_run_starts_from_the_stored_weights_of_the_last_level(self, bench, trajectory, stores, retrain):
        whole, store = self.run(bench, trajectory, stores, retrain), stores()
        bench.run(trajectory({**STEP, "retrain": retrain, "rewind_iteration": self.K, "max_levels": 1}), store)
        bench.counts()
        spec = trajectory({**STEP, "retrain": retrain, "rewind_iteration": self.K, "max_levels": 2})
        later = bench.run(spec, store)
        assert bench.counts() == {"level_reused": 2, "level_started": 1, "level_finished": 1}
        assert later[2].curve == whole[2].curve

    def test_level_0_is_shared_and_the_others_are_not(self, bench, trajectory, stores):
        keys = [self.run(bench, trajectory, stores, r) for r in ("weights", "learning_rate", "finetune")]
        assert [len({levels[number].key for levels in keys}) for number in (0, 1, 2)] == [1, 3, 3]


class TestReinitialization:
    def run(self, bench, trajectory, stores, **changes):
        levels = bench.run(trajectory({"pruning_rate": 0.5, "max_levels": 1, **changes}), stores())
        return levels[1].mask, bench.inputs[1], bench.outputs[1].weights

    @pytest.mark.parametrize("k", [0, 7])
    def test_a_fresh_draw(self, bench, trajectory, stores, digits, k):
        spec = trajectory()
        mask, given, _ = self.run(bench, trajectory, stores, reinit_kept="fresh", rewind_iteration=k)
        other = digits.build(spec.model, spec.seed, draw=1).state_dict()
        assert equal(given, masked(other, mask))
        assert not torch.equal(given["fc1.weight"], bench.inputs[0]["fc1.weight"] * mask["fc1.weight"])
        assert bench.levels[1].start == k

    @pytest.mark.parametrize("k", [0, 7])
    def test_the_constant_with_its_sign(self, bench, trajectory, stores, k):
        mask, given, _ = self.run(bench, trajectory, stores, reinit_kept="sign", rewind_iteration=k)
        initial, rewind = bench.inputs[0], bench.outputs[0].kept[k]
        for name, kept in mask.items():
            constant = ((initial[name] - initial[name].mean()) ** 2).mean().sqrt()
            assert torch.allclose(given[name], rewind[name].sign() * constant * kept)
        assert torch.equal(given["fc1.bias"], rewind["fc1.bias"])

    @pytest.mark.parametrize("k", [0, 7])
    def test_pruned_weights_fixed_at_their_initial_values(self, bench, trajectory, stores, k):
        mask, given, after = self.run(bench, trajectory, stores, reinit_pruned="initial", rewind_iteration=k)
        rewind = bench.outputs[0].kept[k]
        assert equal(given, rewind)
        for name, kept in mask.items():
            assert torch.equal(after[name][~kept], rewind[name][~kept])
            assert not torch.equal(after[name][kept], rewind[name][kept])

    def test_fresh_where_kept_and_initial_where_pruned(self, bench, trajectory, stores):
        mask, given, after = self.run(bench, trajectory, stores, reinit_kept="fresh", reinit_pruned="initial")
        initial = bench.inputs[0]
        for name, kept in mask.items():
            assert torch.equal(given[name][~kept], initial[name][~kept])
            assert torch.equal(after[name][~kept], initial[name][~kept])
            assert not (given[name][kept] == initial[name][kept]).any()


class TestSchedules:
    def test_one_shot(self, bench, trajectory, stores):
        levels = bench.run(trajectory({"target_densities": 0.1, "strategy": "global", "max_levels": None}), stores())
        assert [kept_weights(level.mask) for level in levels] == [1184, 118]

    def test_a_list(self, bench, trajectory, stores):
        targets = [0.5, 0.1, 0.005]
        spec = trajectory({"target_densities": targets, "strategy": "global", "max_levels": None})
        levels = bench.run(spec, stores())
        assert [density(level.mask) for level in levels] == pytest.approx([1.0, 0.5, 0.1, 0.005], abs=5e-4)
        assert [level.next_mask is None for level in levels] == [True, False, False, True]

    def test_a_list_may_be_cut_short(self, bench, trajectory, stores):
        assert len(bench.run(trajectory({"target_densities": [0.5, 0.2, 0.1], "max_levels": 2}), stores())) == 3

    def test_a_target_that_prunes_nothing_still_gets_a_level(self, bench, trajectory, stores):
        spec = trajectory({"target_densities": [0.9999, 0.5], "strategy": "global", "max_levels": None})
        assert [kept_weights(level.mask) for level in bench.run(spec, stores())] == [1184, 1184, 592]

    def test_lists_share_their_common_levels(self, bench, trajectory, stores):
        store = stores()
        bench.run(trajectory({"target_densities": [0.5, 0.2, 0.1], "max_levels": None}), store)
        bench.counts()
        bench.run(trajectory({"target_densities": [0.5, 0.2, 0.05], "max_levels": None}), store)
        # Level 2 is not shared, because its entry includes the mask of level 3, which differs.
        assert bench.counts() == {"level_reused": 2, "level_started": 2, "level_finished": 2}

    def test_the_pruning_rate_is_ignored(self, bench, trajectory, stores):
        store, targets = stores(), {"target_densities": [0.5, 0.2]}
        bench.run(trajectory({**targets, "pruning_rate": 0.2}), store)
        bench.counts()
        bench.run(trajectory({**targets, "pruning_rate": 0.7}), store)
        assert bench.counts() == {"level_reused": 3}


class TestCriteria:
    @pytest.mark.parametrize("criterion", ["magnitude_increase", "movement", "large_init", "small_final"])
    @pytest.mark.parametrize(("k", "reinit"), [(0, "rewind"), (7, "rewind"), (7, "fresh"), (0, "sign")])
    def test_scores_use_the_trained_and_the_initial_weights_of_a_level(
        self, bench, trajectory, stores, criterion, k, reinit
    ):
        changes = {"criterion": criterion, "rewind_iteration": k, "max_levels": 2, "strategy": "global"}
        levels = bench.run(trajectory({**changes, "reinit_kept": reinit}), stores())
        starts = [bench.outputs[0].kept[k], bench.inputs[1]]
        for before, after, outputs, start in zip(levels, levels[1:], bench.outputs, starts, strict=False):
            names = list(before.mask)
            i, f = (torch.cat([w[name].flatten() for name in names]) for w in (start, outputs.weights))
            scores = {
                "magnitude_increase": f.abs() - i.abs(),
                "movement": (f - i).abs(),
                "large_init": i.abs(),
                "small_final": -f.abs(),
            }[criterion]
            was, kept = (torch.cat([level.mask[name].flatten() for name in names]) for level in (before, after))
            assert scores[was & ~kept].max() <= scores[kept].min()

    @pytest.mark.parametrize("criterion", ["snip", "grasp", "synflow"])
    def test_criteria_at_initialization_do_not_depend_on_the_training(self, bench, trajectory, stores, criterion):
        changes = {"criterion": criterion, "target_densities": [0.5, 0.05], "strategy": "global", "max_levels": None}
        short, longer = (bench.run(trajectory({**changes, "training.iterations": n}), stores()) for n in (2, 30))
        for number, kept in ((1, 592), (2, 59)):
            assert kept_weights(short[number].mask) == kept
            assert all(torch.equal(m, longer[number].mask[n]) for n, m in short[number].mask.items())
        assert short[1].key != longer[1].key

    @pytest.mark.parametrize("criterion", ["snip", "grasp"])
    def test_the_batch_follows_the_seed(self, bench, trajectory, stores, criterion, digits):
        asked = []
        stream = digits.data.stream
        bench.task = ImageTask(Spy(digits.data, lambda seed, size: asked.append((seed, size)) or stream(seed, size)))
        bench.run(trajectory({"criterion": criterion, "max_levels": 1, "target_densities": 0.3}, seed=3), stores())
        assert set(asked) == {(3, 64)}


class Spy:
    """A wrapper around a data set that replaces its method `stream`."""

    def __init__(self, data, stream):
        self._data, self.stream = data, stream

    def __getattr__(self, name):
        return getattr(self._data, name)
