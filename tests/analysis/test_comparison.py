import dataclasses
import math
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest

from ticket_search.analysis.comparison import _percentiles, compare, crossed, crossed_ratio, interval, ratio_of_means
from ticket_search.results.reading import Results
from ticket_search.results.schema import schemas


def test_an_interval_of_equal_values_is_a_point():
    assert interval([0.5, 0.5, 0.5]) == (0.5, 0.5, 0.5)


def test_the_ends_are_quantiles_of_resampled_means():
    """Resampling the values 0 and 1 gives the means 0, 0.5 and 1 with the probabilities 1/4, 1/2 and 1/4."""
    assert interval([0.0, 1.0]) == (0.5, 0.0, 1.0)
    assert interval([0.0, 1.0], confidence=0.1) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(("n", "t"), [(2, 12.706), (3, 4.303), (5, 2.776), (30, 2.045)])
def test_the_percentiles_agree_with_students_t(n, t):
    low, high = _percentiles(n, 0.95)
    assert low == pytest.approx(NormalDist().cdf(-t * math.sqrt(n / (n - 1))), rel=5e-3)
    assert high == 1 - low


def test_five_seeds_cover_the_true_mean_as_often_as_documented():
    samples = np.random.default_rng(0).normal(size=(500, 5))
    held = sum(low <= 0 <= high for _, low, high in map(interval, samples))
    assert held / 500 == pytest.approx(0.92, abs=0.03)


def test_the_width_agrees_with_theory():
    values = np.random.default_rng(1).normal(size=400)
    mean, low, high = interval(values)
    half = 1.96 * values.std() / math.sqrt(400)
    assert (mean - low, high - mean) == (pytest.approx(half, rel=0.1), pytest.approx(half, rel=0.1))


def test_one_seed_has_a_mean_but_no_interval():
    mean, low, high = interval([0.3])
    assert (mean, math.isnan(low), math.isnan(high)) == (0.3, True, True)


def test_a_ratio_of_means_is_paired():
    """If the ratio is 2 for every seed, it is 2 for every resample of the seeds."""
    assert ratio_of_means([200, 400, 900], [100, 200, 450]) == (2.0, 2.0, 2.0)
    ratio, low, high = ratio_of_means([100, 300], [100, 100])
    assert (ratio, low, high) == (2.0, 1.0, 3.0)


def test_crossed_with_one_ticket_or_one_seed_is_an_ordinary_interval():
    values = [0.1, 0.4, 0.5, 0.9]
    mean, low, high = interval(values)
    for matrix in (np.array([values]), np.array([values]).T):
        found = crossed(matrix)
        assert found[0] == pytest.approx(mean)
        assert found[1:] == (pytest.approx(low, abs=0.02), pytest.approx(high, abs=0.02))


def test_crossed_resamples_tickets_and_seeds_independently():
    """If only the ticket, or only the seed, affects the values, the interval is the ordinary one for two values."""
    for matrix in (np.array([[0.0, 0.0], [1.0, 1.0]]), np.array([[0.0, 1.0], [0.0, 1.0]])):
        assert crossed(matrix) == (0.5, 0.0, 1.0)
        assert crossed(matrix, confidence=0.1) == (0.5, 0.5, 0.5)
    # Only one of the four values is 1. One resample in 16 draws its ticket and its seed twice, and then the mean is 1.
    assert crossed(np.array([[0.0, 0.0], [0.0, 1.0]])) == (0.25, 0.0, 1.0)


def test_crossed_covers_the_true_mean_when_tickets_and_seeds_both_vary():
    draw = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        low, high = crossed(draw.normal(size=(5, 1)) + draw.normal(size=(1, 5)) + draw.normal(size=(5, 5)))[1:]
        held += low <= 0 <= high
    assert held / 300 >= 0.92


def test_crossed_ignores_missing_values():
    assert crossed(np.array([[0.2, np.nan], [0.2, 0.2]])) == pytest.approx((0.2, 0.2, 0.2))
    assert crossed_ratio(np.array([[2.0, np.nan]]), np.array([[1.0, 7.0]]))[0] == 2.0
    assert all(math.isnan(value) for value in crossed(np.array([[np.nan]])))


LEVEL = {"pruning_rate": 0.2, "strategy": "layerwise", "criterion": "magnitude", "rewind_iteration": 0}


def results(accuracies, controls=()):
    """Return tables of levels and controls.

    Args:
        accuracies: the accuracies of levels 0 and 1 for each seed.
        controls: a tuple (seed, kind, draw, accuracy) for each control.
    """
    levels = [
        LEVEL
        | {"trajectory_id": f"t{seed}", "level": level, "seed": seed, "density": 1 - 0.2 * level}
        | {"test_accuracy": accuracy, "early_stop_test_accuracy": accuracy, "early_stop_iteration": 100 // (level + 1)}
        for seed, pair in enumerate(accuracies)
        for level, accuracy in enumerate(pair)
    ]
    drawn = [
        {"trajectory_id": f"t{seed}", "level": 1, "control": kind, "draw": draw, "seed": seed, "density": 0.8}
        | {"test_accuracy": accuracy, "early_stop_test_accuracy": accuracy, "early_stop_iteration": 200}
        for seed, kind, draw, accuracy in controls
    ]
    empty = {
        name: schemas({})[name].empty_table().to_pandas() for name in ("trajectories", "curves", "layers", "early_bird")
    }
    columns = schemas({})["controls"].names
    return Results(levels=pd.DataFrame(levels), controls=pd.DataFrame(drawn, columns=columns), **empty)


def row(frame, arm):
    (found,) = frame[frame["arm"] == arm].to_dict("records")
    return found


def test_a_ticket_is_compared_with_the_dense_network_of_its_own_seed():
    """The accuracies vary widely between seeds, but every ticket is 0.01 better than its dense network."""
    found = row(compare(results([(0.90, 0.91), (0.80, 0.81), (0.70, 0.71)])), "ticket")
    assert found["test_accuracy"] == pytest.approx(0.81)
    assert found["test_accuracy_high"] - found["test_accuracy_low"] > 0.1
    assert found["test_accuracy_gain"] == pytest.approx(0.01)
    assert (found["test_accuracy_gain_low"], found["test_accuracy_gain_high"]) == pytest.approx((0.01, 0.01))
    assert (found["speed"], found["speed_mean_of_ratios"], found["seeds"]) == (2.0, 2.0, 3)


def test_a_control_counts_once_per_seed_and_the_ticket_leads_it():
    controls = [(0, "random_reinit", 0, 0.80), (0, "random_reinit", 1, 0.90), (1, "random_reinit", 0, 0.75)]
    found = row(compare(results([(0.90, 0.91), (0.80, 0.81)], controls)), "random_reinit")
    assert found["test_accuracy"] == pytest.approx((0.85 + 0.75) / 2)
    assert found["test_accuracy_lead"] == pytest.approx((0.06 + 0.06) / 2)
    assert found["test_accuracy_gain"] == pytest.approx((-0.05 - 0.05) / 2)
    assert (found["speed"], found["slowdown"], found["seeds"]) == (0.5, 4.0, 2)


def test_a_diverged_control_is_ignored():
    controls = [(0, "shuffled_mask", 0, 0.5), (1, "shuffled_mask", 0, math.nan)]
    assert row(compare(results([(0.9, 0.9), (0.8, 0.8)], controls)), "shuffled_mask")["seeds"] == 1


def test_configurations_are_distinguished_by_the_searched_fields():
    found = results([(0.9, 0.9), (0.5, 0.5)])
    found.levels["training.optimizer.lr"] = [0.1, 0.1, 0.2, 0.2]
    frame = compare(found)
    assert list(frame["training.optimizer.lr"]) == [0.1, 0.1, 0.2, 0.2]
    assert list(frame["seeds"]) == [1] * 4


def test_if_early_bird_ended_level_0_the_dense_arm_is_the_fully_trained_network():
    tables = results([(0.5, 0.9), (0.6, 0.8)])
    whole = [
        {"trajectory_id": f"t{seed}", "level": 0, "control": "dense", "draw": 0, "seed": seed, "density": 1.0}
        | {"test_accuracy": 0.85, "early_stop_test_accuracy": 0.85, "early_stop_iteration": 400}
        for seed in (0, 1)
    ]
    found = compare(dataclasses.replace(tables, controls=pd.DataFrame(whole))).set_index("arm")
    assert list(found.index) == ["early_bird", "dense", "ticket"]
    assert found["test_accuracy"].tolist() == pytest.approx([0.55, 0.85, 0.85])
    assert found["test_accuracy_gain"].tolist() == pytest.approx([-0.3, 0.0, 0.0])
    assert found["speed"].tolist() == pytest.approx([4.0, 1.0, 8.0])
    assert "test_accuracy_lead" not in found


def test_the_rows_are_the_arms_of_each_level():
    controls = [(0, "random_reinit", 0, 0.8), (0, "shuffled_mask", 0, 0.8)]
    found = compare(results([(0.9, 0.9), (0.8, 0.8)], controls))
    assert list(zip(found["level"], found["arm"], strict=True)) == [
        (0, "dense"),
        (1, "ticket"),
        (1, "random_reinit"),
        (1, "shuffled_mask"),
    ]
