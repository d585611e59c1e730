from math import log2

import pytest

from ticket_search.config.settings import EarlyStoppingSpec
from ticket_search.search.early_stopping import EarlyStopping
from ticket_search.tasks.metric import Metric

ACCURACY = Metric(name="accuracy", higher_is_better=True, unit="fraction of the images")
NATS = Metric(name="nats_per_character", higher_is_better=False, unit="nats")

#: Rules under which only the comparison can stop a trajectory.
COMPARE = {"collapse": 1.0, "margin": 0.05, "patience": 2, "worst_fraction": 0.5, "min_trajectories": 4}
#: Rules under which only a collapse can stop a trajectory.
COLLAPSE = {"collapse": 0.2, "collapse_levels": 2, "margin": 0.05, "patience": 99}


def stopping(tolerance=0.0, **rules):
    return EarlyStopping(EarlyStoppingSpec(**rules), tolerance)


class Course:
    """A trajectory whose levels are reported one by one, after a dense network with the accuracy `dense`."""

    def __init__(self, watch, name, dense=0.9):
        self.watch, self.name, self.dense = watch, name, dense
        self.tell((1.0, dense))

    def tell(self, *levels):
        """Report levels as (compression, accuracy); return a reason to stop, or None, for each."""
        return [
            self.watch.observe(self.name, compression=c, value=a, dense=self.dense, metric=ACCURACY) for c, a in levels
        ]


def ladder(rate, lost, levels=8):
    """Return the (compression, accuracy) of levels that lose `lost` in accuracy each time the density halves."""
    compressions = [(1 - rate) ** -n for n in range(1, levels + 1)]
    return [(c, 0.9 - lost * log2(c)) for c in compressions]


class TestTheComparison:
    def test_the_worst_at_equal_compression_is_stopped_and_the_best_never(self):
        watch = stopping(**COMPARE)
        for name, rate, lost in (("good", 0.2, 0.06), ("fair", 0.5, 0.08), ("poor", 0.3, 0.1)):
            # Three trajectories are too few for a comparison.
            assert Course(watch, name).tell(*ladder(rate, lost)) == [None] * 8
        assert Course(watch, "worst").tell(*ladder(0.4, 0.3, levels=3)) == [
            None,
            "no match for 2 levels, and 3 of 3 other trajectories did as well or better at compression 2.78",
            "no match for 3 levels, and 3 of 3 other trajectories did as well or better at compression 4.63",
        ]
        assert Course(watch, "best").tell(*ladder(0.45, 0.055)) == [None] * 8

    def test_trajectories_are_compared_at_equal_compression_not_at_equal_level(self):
        """A third level with a compression of 8 is not compared with the much denser third levels of the others."""
        watch = stopping(**COMPARE)
        for name in "abc":
            Course(watch, name).tell((1.25, 0.85), (1.5, 0.84), (2.0, 0.8))
        assert Course(watch, "sparse").tell((2.0, 0.81), (4.0, 0.7), (8.0, 0.6)) == [None, None, None]

    def test_the_worst_of_four(self):
        watch = stopping(**COMPARE)
        for name, accuracy in (("a", 0.8), ("b", 0.7), ("c", 0.6)):
            Course(watch, name).tell((2.0, accuracy), (4.0, accuracy))
        assert Course(watch, "d").tell((2.0, 0.5), (4.0, 0.5)) == [
            None,
            "no match for 2 levels, and 3 of 3 other trajectories did as well or better at compression 4",
        ]

    @pytest.mark.parametrize(("accuracy", "dropped"), [(0.5, True), (0.65, True), (0.75, False), (0.85, False)])
    def test_the_worse_half_of_four_is_stopped(self, accuracy, dropped):
        watch = stopping(**COMPARE | {"margin": 0.0})
        for name, other in (("a", 0.8), ("b", 0.7), ("c", 0.6)):
            Course(watch, name).tell((2.0, other), (4.0, other))
        assert [reason is not None for reason in Course(watch, "d").tell((2.0, accuracy), (4.0, accuracy))] == [
            False,
            dropped,
        ]

    def test_with_a_small_fraction_only_the_worst_is_stopped(self):
        watch = stopping(**COMPARE | {"worst_fraction": 0.01})
        for name, accuracy in (("a", 0.8), ("b", 0.7), ("c", 0.6)):
            Course(watch, name).tell((2.0, accuracy), (4.0, accuracy))
        assert Course(watch, "second").tell((2.0, 0.65), (4.0, 0.65)) == [None, None]
        assert Course(watch, "worst").tell((2.0, 0.5), (4.0, 0.5))[1] is not None

    def test_too_few_trajectories_are_not_compared(self):
        watch = stopping(**COMPARE)
        for name in "ab":
            Course(watch, name).tell((2.0, 0.8), (4.0, 0.8))
        Course(watch, "behind").tell((2.0, 0.8), (3.9, 0.8))
        assert Course(watch, "d").tell((2.0, 0.5), (4.0, 0.5)) == [None, None]

    def test_among_equals_none_is_stopped(self):
        watch = stopping(**COMPARE)
        for name in "abc":
            Course(watch, name).tell((2.0, 0.5), (4.0, 0.5))
        assert Course(watch, "d").tell((2.0, 0.5), (4.0, 0.5)) == [None, None]

    def test_none_is_stopped_before_its_patience_is_exhausted(self):
        watch = stopping(**COMPARE | {"patience": 3})
        for name in "abc":
            Course(watch, name).tell((2.0, 0.8), (4.0, 0.8), (8.0, 0.8))
        said = Course(watch, "d").tell((2.0, 0.5), (4.0, 0.5), (8.0, 0.5))
        assert [reason is not None for reason in said] == [False, False, True]

    def test_a_matching_level_resets_the_patience(self):
        watch = stopping(**COMPARE)
        for name in "abc":
            Course(watch, name).tell((2.0, 0.95), (4.0, 0.95), (8.0, 0.95))
        assert Course(watch, "d").tell((2.0, 0.5), (4.0, 0.9), (8.0, 0.5)) == [None, None, None]

    def test_a_matching_trajectory_is_never_stopped(self):
        watch = stopping(**COMPARE)
        for name in "abcdef":
            Course(watch, name).tell((2.0, 0.99), (4.0, 0.99), (8.0, 0.99))
        assert Course(watch, "last").tell((2.0, 0.9), (4.0, 0.9), (8.0, 0.9)) == [None, None, None]

    def test_a_trajectory_within_the_tolerance_or_margin_is_not_stopped(self):
        for tolerance, margin in ((0.2, 0.0), (0.0, 0.2)):
            watch = stopping(tolerance, **COMPARE | {"margin": margin})
            for name in "abc":
                Course(watch, name).tell((2.0, 0.99), (4.0, 0.99))
            assert Course(watch, "d").tell((2.0, 0.75), (4.0, 0.75)) == [None, None]

    def test_each_trajectory_is_compared_with_its_own_dense_network(self):
        watch = stopping(**COMPARE)
        for name in "abc":
            Course(watch, name, dense=0.5).tell((2.0, 0.4), (4.0, 0.4))
        assert Course(watch, "low", dense=0.9).tell((2.0, 0.6), (4.0, 0.6))[1] is not None
        assert Course(watch, "high", dense=0.45).tell((2.0, 0.38), (4.0, 0.38)) == [None, None]

    def test_gaps_are_interpolated_over_the_logarithm_of_the_compression(self):
        """At compression 4, halfway between 2 and 8 on a log scale, the others are at (0.8 + 0.4) / 2 = 0.6."""
        for accuracy, dropped in ((0.59, True), (0.61, False)):
            watch = stopping(**COMPARE)
            for name in "abc":
                Course(watch, name).tell((2.0, 0.8), (8.0, 0.4))
            assert (Course(watch, "d").tell((2.0, 0.7), (4.0, accuracy))[1] is not None) is dropped

    def test_forgetting_a_trajectory_removes_it_from_the_comparison(self):
        watch = stopping(**COMPARE)
        for name in "abc":
            Course(watch, name).tell((2.0, 0.8), (4.0, 0.8))
        watch.forget("c")
        Course(watch, "c")
        assert Course(watch, "d").tell((2.0, 0.5), (4.0, 0.5)) == [None, None]
        watch.forget("nobody")


class TestCollapse:
    def test_stops_after_enough_levels_in_a_row(self):
        assert Course(stopping(**COLLAPSE), "a").tell((2.0, 0.8), (4.0, 0.6), (8.0, 0.5)) == [
            None,
            None,
            "collapsed: 2 levels were more than 0.2 worse than the dense network",
        ]

    def test_a_recovery_resets_the_count(self):
        assert Course(stopping(**COLLAPSE), "a").tell((2.0, 0.6), (4.0, 0.8), (8.0, 0.5)) == [None, None, None]

    def test_needs_no_others_and_is_relative_to_the_dense_network(self):
        assert Course(stopping(**COLLAPSE), "a", dense=0.3).tell((2.0, 0.15), (4.0, 0.12)) == [None, None]
        assert Course(stopping(**COLLAPSE), "a", dense=0.95).tell((2.0, 0.7), (4.0, 0.7))[1] is not None

    def test_takes_precedence_over_the_comparison(self):
        watch = stopping(**COMPARE | {"collapse": 0.2, "collapse_levels": 1})
        assert Course(watch, "only").tell((2.0, 0.5))[0].startswith("collapsed: 1 level was more")


def test_nothing_is_stopped_without_early_stopping():
    watch = EarlyStopping(None, 0.0)
    for name in "abcd":
        Course(watch, name).tell((2.0, 0.8), (4.0, 0.8), (8.0, 0.8))
    assert Course(watch, "e").tell((2.0, 0.0), (4.0, 0.0), (8.0, 0.0)) == [None, None, None]


def test_equal_leads_are_treated_equally_if_lower_is_better():
    """Mirroring all values about the dense network's value and reversing the metric's direction changes no decision."""
    answers = []
    for metric, sign in ((ACCURACY, 1), (NATS, -1)):
        watch, said = stopping(**COLLAPSE), []
        for compression, lead in ((1.0, 0.0), (2.0, 0.1), (4.0, -0.1), (8.0, -0.3), (16.0, -0.4)):
            value = 0.5 + sign * lead
            said.append(watch.observe("t", compression=compression, value=value, dense=0.5, metric=metric))
        answers.append(said)
    reason = "collapsed: 2 levels were more than 0.2 worse than the dense network"
    assert answers[0] == answers[1] == [None] * 4 + [reason]
