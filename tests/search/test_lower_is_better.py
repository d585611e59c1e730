"""Tests for a metric where lower is better: nats per character. Every dense network scores 2."""

import pytest

from ticket_search.analysis.tickets import tickets
from ticket_search.results.reading import load_results
from ticket_search.results.schema import schemas
from ticket_search.search.driver import SearchDriver
from ticket_search.search.reports import EndReport, LevelReport

DENSE = 2.0
SPACE = {"pruning_rate": [0.5, 0.25, 0.2, 0.3]}


def report(suggestion, level, value):
    kept = 100 >> level
    row = dict.fromkeys(schemas({})["levels"].names) | {
        "trajectory_id": suggestion.trajectory_id,
        "level_key": f"key{level}",
        "level": level,
        "pruning_rate": suggestion.values["pruning_rate"],
        "seed": suggestion.seed,
        "density": kept / 100,
        "compression": 100 / kept,
        "matching": value <= DENSE,
        "iterations": 40,
        "train_seconds": 1.0,
        "reused": False,
        "task": "language",
        "metric": "nats_per_character",
        "higher_is_better": False,
        "val_metric": value,
        "dense_val_metric": DENSE,
        "test_metric": value,
        "dense_test_metric": DENSE,
    }
    key = {"trajectory_id": suggestion.trajectory_id, "level": level}
    return LevelReport(level=row, curve=[key | {"iteration": 40}], layers=[key | {"name": "fc1.weight"}])


def told(driven, suggestion, *values):
    """Report a whole trajectory; return a reason to stop, or None, for each level after the dense network."""
    said = [driven.level_finished(suggestion.number, report(suggestion, n, v)) for n, v in enumerate((DENSE, *values))]
    driven.ended(suggestion.number, EndReport(status="completed"))
    return said[1:]


@pytest.fixture
def driven(search, tmp_path):
    def make(sampler="grid", **rules):
        spec = search(SPACE, seeds=(0,), sampler=sampler, trials=4, early_stopping=rules or None)
        return SearchDriver(spec, tmp_path)

    return make


def test_values_far_above_the_dense_network_have_collapsed(driven):
    search = driven(collapse=0.2, collapse_levels=1)
    assert told(search, search.next(), 1.0, 1.5) == [None, None]
    (said,) = told(search, search.next(), 2.5)
    assert said.startswith("collapsed")


def test_the_highest_value_is_the_worst_even_after_a_restart(driven):
    rules = {"collapse": 0.9, "margin": 0.01, "patience": 1, "min_trajectories": 3, "worst_fraction": 0.1}
    search = driven(**rules)
    for value in (1.9, 2.1):
        told(search, search.next(), value)
    search.flush()
    again = driven(**rules)
    assert told(again, again.next(), 2.05) == [None]
    (said,) = told(again, again.next(), 2.3)
    assert said.startswith("no match for 1 level, and 3 of 3 other trajectories did as well or better at compression 2")


def test_nsga2_minimizes_the_metric(driven):
    search = driven(sampler="nsga2")
    told(search, search.next(), 1.75)
    told(search, search.next(), 2.5)
    assert [trial.values for trial in search._sampler.study.trials] == [[-1.75, 1.0], [-2.0, 0.0]]


def test_among_equal_densities_the_lowest_value_comes_first(driven, tmp_path):
    search = driven()
    for value in (1.9, 1.7, 1.8):
        told(search, search.next(), value)
    search.flush()
    found = tickets(load_results(tmp_path))
    assert list(found["val_metric"]) == [1.7, 1.8, 1.9]
    assert not [name for name in found if "accuracy" in name]
