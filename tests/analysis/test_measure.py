"""Tests for metrics other than accuracy: verdicts must be the same whether higher or lower values are better."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from ticket_search.analysis.comparison import compare
from ticket_search.analysis.confirmation import confirm_table
from ticket_search.analysis.measure import ACCURACY, final_column, measure_of
from ticket_search.analysis.transfer import transfer_table
from ticket_search.cli.display import print_arms
from ticket_search.errors import SpecError
from ticket_search.results.reading import Results

SEEDS = 5
#: The gain of a ticket over its dense network, or of a control over its ticket, for each seed.
BETTER = [0.02, 0.021, 0.022, 0.019, 0.018]
WORSE = [-gain for gain in BETTER]
FINAL, EARLY = "test_metric", "early_stop_test_metric"


def frame(ticket_gain, control_lead, *, higher_is_better):
    """Return results with one ticket and one control per seed; the dense networks score 2.0, 2.5, 3.0 and so on."""
    sign = 1 if higher_is_better else -1
    head = {"pruning_rate": 0.2, "strategy": "global", "criterion": "magnitude", "rewind_iteration": 0}
    levels, controls = [], []
    for seed in range(SEEDS):
        dense = 2.0 + 0.5 * seed
        ticket = dense + sign * ticket_gain[seed]
        for level, value in enumerate((dense, ticket)):
            levels.append(
                head
                | {"trajectory_id": f"t{seed}", "ticket": "a", "seed": seed, "level": level}
                | {"kept_weights": 100 >> level, "prunable_weights": 100, "density": 0.5**level}
                | {"metric": "nats_per_character", "higher_is_better": higher_is_better}
                | {FINAL: value, EARLY: value, "early_stop_iteration": 100}
                # The accuracy columns are null for any other metric.
                | {"test_accuracy": np.nan, "early_stop_test_accuracy": np.nan}
            )
        value = ticket + sign * control_lead[seed]
        controls.append(
            {"trajectory_id": f"t{seed}", "level": 1, "control": "shuffled_mask", "draw": 0, "seed": seed}
            | {"density": 0.5, FINAL: value, EARLY: value, "early_stop_iteration": 200}
        )
    empty = dict.fromkeys(("trajectories", "curves", "layers", "early_bird"), pd.DataFrame())
    return Results(levels=pd.DataFrame(levels), controls=pd.DataFrame(controls), **empty)


@pytest.mark.parametrize("table", [confirm_table, transfer_table])
@pytest.mark.parametrize("higher_is_better", [True, False])
@pytest.mark.parametrize(
    ("gain", "lead", "verdict"),
    [
        (BETTER, WORSE, "better, beats shuffled_mask"),
        (BETTER, BETTER, "better, does not beat shuffled_mask"),
        (WORSE, WORSE, "worse, beats shuffled_mask"),
        ([0.001, -0.001, 0.0, 0.001, -0.001], BETTER, "matches, does not beat shuffled_mask"),
    ],
)
def test_verdicts_in_both_directions(table, higher_is_better, gain, lead, verdict):
    found = table(frame(gain, lead, higher_is_better=higher_is_better), margin=0.005)
    assert list(found["verdict"].dropna()) == [verdict]


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_a_gain_is_positive_where_the_ticket_is_better_and_the_mean_is_of_the_metric_itself(higher_is_better):
    found = compare(frame(BETTER, WORSE, higher_is_better=higher_is_better)).set_index("arm")
    sign = 1 if higher_is_better else -1
    assert found.loc["dense", FINAL] == 3.0
    assert found.loc["ticket", FINAL] == pytest.approx(3.0 + sign * 0.02)
    assert found.loc["ticket", f"{FINAL}_gain"] == pytest.approx(0.02)
    assert found.loc["shuffled_mask", f"{FINAL}_gain"] == pytest.approx(0.0)
    assert found.loc["shuffled_mask", f"{EARLY}_lead"] == pytest.approx(0.02)
    assert not [name for name in found.columns if "accuracy" in name]


def test_searches_judged_by_accuracy_keep_their_columns():
    levels = pd.DataFrame({"metric": ["accuracy"] * 2, "higher_is_better": [True] * 2})
    assert measure_of(levels) == measure_of(levels.iloc[:0]) == measure_of(pd.DataFrame()) == ACCURACY
    assert ACCURACY.figures == ("test_accuracy", "early_stop_test_accuracy", "early_stop_iteration")


def test_levels_of_two_metrics_are_not_compared():
    levels = pd.DataFrame({"metric": ["accuracy", "return"], "higher_is_better": [True, True]})
    with pytest.raises(ValueError, match=r"with the metrics \['accuracy', 'return'\] cannot be compared"):
        measure_of(levels)


def test_a_diverged_control_is_ignored():
    tables = frame(BETTER, WORSE, higher_is_better=False)
    tables.controls.loc[0, [FINAL, EARLY]] = np.nan
    found = compare(dataclasses.replace(tables)).set_index("arm")
    assert (found.loc["shuffled_mask", "seeds"], found.loc["ticket", "seeds"]) == (SEEDS - 1, SEEDS)


def test_the_table_on_the_terminal_says_which_metric(capsys):
    table = confirm_table(frame(BETTER, WORSE, higher_is_better=False), margin=0.005)
    assert final_column(table) == FINAL
    print_arms(Console(width=200), table, ["pruning_rate"])
    said = capsys.readouterr().out
    assert "test metric" in said
    assert "2.9800" in said
    assert "+0.0200" in said


@pytest.mark.parametrize("table", [confirm_table, transfer_table])
@pytest.mark.parametrize("margin", [float("nan"), float("inf"), -0.001])
def test_an_invalid_margin_is_refused(table, margin):
    with pytest.raises(SpecError, match=rf"margin {margin!r} is not valid: give a finite number that is at least 0"):
        table(frame(WORSE, WORSE, higher_is_better=True), margin=margin)
