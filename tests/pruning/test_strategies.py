import itertools
from typing import ClassVar, get_args

import pytest
import torch
from torch import tensor

from ticket_search.config.pruning import Strategy, ValueCriterion
from ticket_search.pruning.criteria import CRITERIA
from ticket_search.pruning.masks import density, full_mask, kept_weights
from ticket_search.pruning.strategies import STRATEGIES, Amount, in_rounds, prune, prune_count

INF = float("inf")


def mask_of(**tensors):
    return {name: tensor(bits).bool() for name, bits in tensors.items()}


def scores_of(**tensors):
    return {name: tensor(values) for name, values in tensors.items()}


def bits(mask):
    return {name: kept.int().tolist() for name, kept in mask.items()}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def initial(weights):
    return {name: torch.randn(weight.shape, generator=generator(2)) for name, weight in weights.items()}


def pruned(strategy, mask, scores, rate=0.5, output_layer_rate=1.0, target=None):
    amount = Amount(rate=rate, target=target, output_layer_rate=output_layer_rate)
    return prune(mask, scores, STRATEGIES[strategy](mask, amount))


@pytest.mark.parametrize(
    ("survivors", "rate", "count"),
    [
        (10, 0.2, 2),
        (100, 0.29, 29),  # in floating point, 0.29 * 100 is 28.999999999999996
        (100, 0.57, 57),
        (7, 0.2, 1),
        (8, 0.2, 2),
        (5, 0.5, 2),  # 2.5 is rounded to the nearest even integer
        (7, 0.5, 4),
        (1, 0.99, 1),
        (2, 0.2, 0),
    ],
)
def test_the_count_is_rounded(survivors, rate, count):
    assert prune_count(survivors, rate) == count


@pytest.mark.parametrize("strategy", STRATEGIES)
class TestOneTensor:
    """With only one tensor, both strategies yield the same mask."""

    def prune(self, strategy, mask, scores, rate):
        return bits(pruned(strategy, mask_of(a=mask), scores_of(a=scores), rate, 1.0))["a"]

    def test_two_of_ten(self, strategy):
        scores = [0.5, 0.1, 0.9, 0.3, 0.8, 0.2, 0.7, 0.4, 0.6, 1.0]
        assert self.prune(strategy, [1] * 10, scores, 0.2) == [1, 0, 1, 1, 1, 0, 1, 1, 1, 1]

    def test_among_equal_scores_the_first_are_pruned(self, strategy):
        assert self.prune(strategy, [1] * 10, [0.5] * 10, 0.2) == [0, 0, 1, 1, 1, 1, 1, 1, 1, 1]

    def test_among_scores_of_zero_the_first_are_pruned(self, strategy):
        assert self.prune(strategy, [1] * 5, [0.0] * 5, 0.99) == [0, 0, 0, 0, 1]

    def test_among_scores_that_tie_at_the_cut_the_first_are_pruned(self, strategy):
        assert self.prune(strategy, [1] * 6, [3.0, 1.0, 2.0, 2.0, 2.0, 3.0], 0.5) == [1, 0, 0, 0, 1, 1]

    def test_a_matrix_is_pruned_in_the_order_of_its_elements(self, strategy):
        after = self.prune(strategy, [[1, 1], [1, 1]], [[1.0, 1.0], [0.5, 1.0]], 0.5)
        assert after == [[0, 1], [0, 1]]

    def test_only_survivors_compete(self, strategy):
        mask = [0, 1, 0, 1, 1, 1]
        scores = [0.0, 3.0, 99.0, 1.0, 2.0, 4.0]
        assert self.prune(strategy, mask, scores, 0.5) == [0, 1, 0, 0, 0, 1]

    def test_pruned_weights_stay_pruned_whatever_their_score(self, strategy):
        assert self.prune(strategy, [0, 0, 1, 1], [INF, INF, 1.0, 2.0], 0.5) == [0, 0, 0, 1]

    def test_the_best_survivor_stays(self, strategy):
        assert self.prune(strategy, [1, 1, 1, 0], [1.0, 3.0, 2.0, 9.0], 0.99) == [0, 1, 0, 0]
        assert self.prune(strategy, [0, 1, 0, 0], [1.0, 3.0, 2.0, 9.0], 0.99) == [0, 1, 0, 0]

    def test_a_rate_that_rounds_to_nothing_prunes_nothing(self, strategy):
        assert self.prune(strategy, [1, 1, 0], [1.0, 2.0, 0.0], 0.2) == [1, 1, 0]


def test_layerwise_and_global_differ():
    mask, scores = mask_of(a=[1, 1, 1, 1], b=[1, 1, 1, 1]), scores_of(a=[1.0, 2.0, 3.0, 4.0], b=[5.0, 6.0, 7.0, 8.0])
    layerwise = pruned("layerwise", mask, scores, 0.5, 1.0)
    assert bits(layerwise) == {"a": [0, 0, 1, 1], "b": [0, 0, 1, 1]}
    globally = pruned("global", mask, scores, 0.5, 1.0)
    # The fourth-lowest score belongs to the best weight of `a`. Every tensor keeps its best weight, so the weight with
    # the fifth-lowest score is pruned instead.
    assert bits(globally) == {"a": [0, 0, 0, 1], "b": [0, 1, 1, 1]}


def test_global_prunes_the_first_tensors_first_among_equal_scores():
    mask, scores = mask_of(a=[1, 1, 1], b=[1, 1, 1]), scores_of(a=[1.0, 1.0, 1.0], b=[1.0, 1.0, 1.0])
    assert bits(pruned("global", mask, scores, 0.5, 1.0)) == {"a": [0, 0, 1], "b": [0, 1, 1]}


def test_layerwise_prunes_the_output_layer_at_its_share():
    mask, scores = mask_of(z=[1] * 4, a=[1] * 4), scores_of(z=[1.0, 2.0, 3.0, 4.0], a=[1.0, 2.0, 3.0, 4.0])
    assert bits(pruned("layerwise", mask, scores, 0.5, 0.5)) == {"z": [0, 0, 1, 1], "a": [0, 1, 1, 1]}


def test_global_ignores_the_share_of_the_output_layer():
    mask, scores = mask_of(a=[1] * 4, b=[1] * 4), scores_of(a=[5.0] * 4, b=[1.0, 2.0, 3.0, 4.0])
    assert bits(pruned("global", mask, scores, 0.25, 0.01)) == {"a": [1, 1, 1, 1], "b": [0, 0, 1, 1]}


def test_global_keeps_the_best_weight_of_every_tensor():
    mask = mask_of(a=[1, 1], b=[1, 1, 1, 1], c=[0, 1])
    scores = scores_of(a=[0.2, 0.1], b=[5.0, 6.0, 7.0, 8.0], c=[0.0, 0.01])
    assert bits(pruned("global", mask, scores, 0.99, 1.0)) == {"a": [1, 0], "b": [0, 0, 0, 1], "c": [0, 1]}


def test_the_densities_of_lenet_300_100():
    """Pruning 20% of the hidden layers and 10% of the output layer per level gives the paper's densities."""
    shapes = {"fc1.weight": (300, 784), "fc2.weight": (100, 300), "output.weight": (10, 100)}
    weights = {name: torch.rand(shape, generator=generator()) for name, shape in shapes.items()}
    mask, percents = full_mask(weights, weights), []
    for _ in range(20):
        mask = pruned("layerwise", mask, weights, 0.2, 0.5)
        percents.append(round(100 * density(mask), 2))
    assert [percents[level - 1] for level in (3, 7, 9, 15, 18, 20)] == [51.28, 21.07, 13.52, 3.58, 1.85, 1.19]


def test_every_name_of_the_specification_is_implemented():
    assert set(STRATEGIES) == set(get_args(Strategy))
    assert set(CRITERIA) == set(get_args(ValueCriterion))


def test_magnitude_is_the_absolute_value():
    assert CRITERIA["magnitude"]({}, scores_of(a=[-2.0, 1.0, -0.0]), generator())["a"].tolist() == [2.0, 1.0, 0.0]


def test_random_scores_follow_the_generator_and_not_the_weights():
    def draw(weights, seed):
        return CRITERIA["random"]({}, {"a": weights}, generator(seed))["a"].tolist()

    assert draw(torch.zeros(5), 1) == draw(torch.ones(5), 1)
    assert draw(torch.zeros(5), 1) != draw(torch.zeros(5), 2)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("criterion", CRITERIA)
class TestContract:
    """Properties that hold for every strategy with every criterion."""

    SIZES: ClassVar = {"one": (1,), "matrix": (7, 9), "kernel": (3, 2, 3, 3), "output": (5, 4)}

    def start(self):
        weights = {name: torch.randn(size, generator=generator(1)) for name, size in self.SIZES.items()}
        return weights, full_mask(weights, weights)

    def levels(self, strategy, criterion, rate, count):
        weights, mask = self.start()
        masks = [mask]
        for level in range(count):
            scores = CRITERIA[criterion](initial(weights), weights, generator(level))
            masks.append(pruned(strategy, masks[-1], scores, rate, 1.0))
        return masks

    @pytest.mark.parametrize("rate", [0.01, 0.2, 0.5, 0.99])
    def test_pruned_weights_stay_pruned_and_no_tensor_is_emptied(self, strategy, criterion, rate):
        for before, after in itertools.pairwise(self.levels(strategy, criterion, rate, 6)):
            assert [bool((kept & ~before[name]).any()) for name, kept in after.items()] == [False] * 4
            assert min(int(kept.sum()) for kept in after.values()) >= 1

    def test_the_count_is_exact(self, strategy, criterion):
        first = self.levels(strategy, criterion, 0.2, 1)[1]
        # The tensors have 1, 63, 54 and 20 weights: layerwise prunes 0, 13, 11 and 4, and global prunes 28 of the 138.
        assert kept_weights(first) == {"layerwise": 138 - 28, "global": 138 - 28}[strategy]

    def test_one_weight_per_tensor_remains_in_the_end(self, strategy, criterion):
        last = self.levels(strategy, criterion, 0.99, 6)[-1]
        assert [int(kept.sum()) for kept in last.values()] == [1, 1, 1, 1]

    def test_pruning_is_reproducible(self, strategy, criterion):
        assert bits(self.levels(strategy, criterion, 0.3, 3)[-1]) == bits(self.levels(strategy, criterion, 0.3, 3)[-1])

    def test_names_order_shapes_types_and_arguments_are_unchanged(self, strategy, criterion):
        weights, mask = self.start()
        scores = CRITERIA[criterion](initial(weights), weights, generator())
        copies = {name: score.clone() for name, score in scores.items()}
        after = pruned(strategy, mask, scores, 0.5, 1.0)
        assert [(name, tuple(kept.shape), kept.dtype) for name, kept in after.items()] == [
            (name, size, torch.bool) for name, size in self.SIZES.items()
        ]
        assert kept_weights(mask) == 138
        assert [torch.equal(scores[name], copies[name]) for name in scores] == [True] * 4


class TestCriteriaByHand:
    """The criteria of Zhou et al. (2019), computed by hand from initial and final weights."""

    INITIAL: ClassVar = {"a": tensor([2.0, -1.0, -4.0, 0.5])}
    FINAL: ClassVar = {"a": tensor([-3.0, -1.0, 1.0, 0.0])}

    @pytest.mark.parametrize(
        ("criterion", "scores", "kept"),
        [
            ("magnitude", [3.0, 1.0, 1.0, 0.0], [1, 0, 1, 0]),
            ("large_final", [3.0, 1.0, 1.0, 0.0], [1, 0, 1, 0]),
            ("magnitude_increase", [1.0, 0.0, -3.0, -0.5], [1, 1, 0, 0]),
            ("movement", [5.0, 0.0, 5.0, 0.5], [1, 0, 1, 0]),
            ("large_init", [2.0, 1.0, 4.0, 0.5], [1, 0, 1, 0]),
            ("small_final", [-3.0, -1.0, -1.0, 0.0], [0, 0, 1, 1]),
        ],
    )
    def test_scores_and_survivors_of_pruning_half(self, criterion, scores, kept):
        found = CRITERIA[criterion](self.INITIAL, self.FINAL, generator())
        assert found["a"].tolist() == scores
        assert bits(pruned("global", mask_of(a=[1] * 4), found, 0.5)) == {"a": kept}


class TestTargets:
    SCORES: ClassVar = scores_of(a=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], z=[1.1, 1.2, 1.3, 1.4])

    def test_layerwise_prunes_each_tensor_to_the_density(self):
        after = pruned("layerwise", mask_of(a=[1] * 8, z=[1] * 4), self.SCORES, target=0.25)
        assert bits(after) == {"a": [0, 0, 0, 0, 0, 0, 1, 1], "z": [0, 0, 0, 1]}

    def test_the_target_is_a_fraction_of_all_weights_not_of_the_survivors(self):
        after = pruned("layerwise", mask_of(a=[0, 0, 0, 0, 1, 1, 1, 1], z=[1] * 4), self.SCORES, target=0.25)
        assert bits(after) == {"a": [0, 0, 0, 0, 0, 0, 1, 1], "z": [0, 0, 0, 1]}

    def test_global_compares_all_weights(self):
        after = pruned("global", mask_of(a=[1] * 8, z=[1] * 4), self.SCORES, target=0.5)
        assert bits(after) == {"a": [0, 0, 0, 0, 0, 0, 1, 1], "z": [1, 1, 1, 1]}

    def test_a_sparser_tensor_is_unchanged(self):
        mask = mask_of(a=[0] * 7 + [1], z=[1] * 4)
        assert bits(pruned("layerwise", mask, self.SCORES, target=0.5))["a"] == [0] * 7 + [1]

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_an_output_layer_with_share_0_is_not_pruned(self, strategy):
        after = pruned(strategy, mask_of(a=[1] * 8, z=[1] * 4), scores_of(a=[5.0] * 8, z=[0.0] * 4), 0.5, 0.0)
        assert bits(after) == {"a": [0, 0, 0, 0, 1, 1, 1, 1], "z": [1, 1, 1, 1]}


class TestRounds:
    def test_rounds_of_equal_ratio_reach_the_same_count(self):
        mask = full_mask({"a": torch.ones(1000), "b": torch.ones(24)}, ["a", "b"])
        groups = STRATEGIES["global"](mask, Amount(rate=0.5, target=1 / 1024 * 4))
        rounds = in_rounds(mask, groups, 4)
        assert [[group.keep for group in step] for step in rounds] == [[256], [64], [16], [4]]

    def test_one_round_equals_a_single_step(self):
        mask = mask_of(a=[1] * 7, b=[1] * 3)
        groups = STRATEGIES["layerwise"](mask, Amount(rate=0.4))
        assert in_rounds(mask, groups, 1) == [groups]
