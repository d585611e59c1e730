from dataclasses import replace

import pytest
from torch import tensor

from ticket_search.config.identity import trajectory_id
from ticket_search.lottery.level import Level, from_entry, to_entry
from ticket_search.lottery.rows import curve_rows, layer_rows, level_row
from ticket_search.results.schema import schemas
from ticket_search.tasks.metric import Metric
from ticket_search.training.outcome import LevelOutputs, Point

MASK = {"z": tensor([[True, False], [True, True]]), "a": tensor([False, True])}
TRAINED_WITH = {"torch_version": "2.15.0", "device": "cpu", "threads": 2, "ticket_search_version": "0.1.0"}
FIGURES = {
    "test_loss": 1.75,
    "test_metric": 0.625,
    "early_stop_iteration": 20,
    "early_stop_test_metric": 0.5,
    "iterations": 20,
    "train_seconds": 0.25,
    **TRAINED_WITH,
}
ACCURACY = Metric(name="accuracy", higher_is_better=True, unit="fraction of the images")
NATS = Metric(name="nats_per_character", higher_is_better=False, unit="nats")


def level(number=2, val_accuracy=0.75, **fields):
    known = {
        "number": number,
        "key": "k",
        "mask": MASK,
        "next_mask": None,
        "final_weights": {},
        "curve": [
            Point(iteration=10, train_loss=2.0, val_loss=1.5, val_metric=0.5),
            Point(iteration=20, train_loss=1.0, val_loss=1.25, val_metric=val_accuracy),
        ],
        "figures": FIGURES | fields,
        "reused": True,
        "diverged": False,
    }
    return Level(**known)


def test_a_level_is_a_row(trajectory):
    spec = trajectory({"pruning_rate": 0.3}, seed=4)
    row = level_row(spec, level(), level(0, 0.8, test_metric=0.7), tolerance=0.1, metric=ACCURACY)
    assert row == {
        "trajectory_id": trajectory_id(spec),
        "level_key": "k",
        "level": 2,
        "pruning_rate": 0.3,
        "strategy": "layerwise",
        "criterion": "magnitude",
        "rewind_iteration": 0,
        "seed": 4,
        "kept_weights": 4,
        "prunable_weights": 6,
        "density": 4 / 6,
        "compression": 1.5,
        "val_loss": 1.25,
        "val_accuracy": 0.75,
        "test_loss": 1.75,
        "test_accuracy": 0.625,
        "dense_val_accuracy": 0.8,
        "dense_test_accuracy": 0.7,
        "matching": True,
        "early_stop_iteration": 20,
        "early_stop_test_accuracy": 0.5,
        "iterations": 20,
        "train_seconds": 0.25,
        "reused": True,
        "task": "classification",
        "metric": "accuracy",
        "higher_is_better": True,
        "val_metric": 0.75,
        "test_metric": 0.625,
        "dense_val_metric": 0.8,
        "dense_test_metric": 0.7,
        "early_stop_test_metric": 0.5,
        **TRAINED_WITH,
        "model.name": "lenet_16",
        "dataset.name": "digits",
    }
    assert list(row) == schemas({})["levels"].names


@pytest.mark.parametrize(
    ("val_accuracy", "tolerance", "matching"),
    [(0.8, 0.0, True), (0.799, 0.0, False), (0.7, 0.1, True), (0.69, 0.1, False)],
)
def test_matching_is_by_the_dense_network_of_the_same_trajectory(trajectory, val_accuracy, tolerance, matching):
    assert level_row(trajectory(), level(2, val_accuracy), level(0, 0.8), tolerance, ACCURACY)["matching"] is matching


def test_accuracies_are_null_for_a_metric_where_lower_is_better(trajectory):
    """A ticket at 1.4 nats matches a dense network at 1.5 nats, and every accuracy column is null."""
    row = level_row(trajectory(), level(2, 1.4), level(0, 1.5), 0.0, NATS)
    assert {name for name, value in row.items() if value is None} == {
        *("val_accuracy", "test_accuracy", "dense_val_accuracy", "dense_test_accuracy", "early_stop_test_accuracy"),
    }
    assert (row["metric"], row["higher_is_better"]) == ("nats_per_character", False)
    assert (row["val_metric"], row["dense_val_metric"], row["matching"]) == (1.4, 1.5, True)
    assert level_row(trajectory(), level(2, 1.6), level(0, 1.5), 0.05, NATS)["matching"] is False
    assert curve_rows(trajectory(), level(2, 1.4), NATS)[1]["val_accuracy"] is None


def test_the_curve_and_the_layers(trajectory):
    spec = trajectory()
    common = {"trajectory_id": trajectory_id(spec), "level": 2}
    assert curve_rows(spec, level(), ACCURACY) == [
        common | {"iteration": 10, "train_loss": 2.0, "val_loss": 1.5, "val_accuracy": 0.5, "val_metric": 0.5},
        common | {"iteration": 20, "train_loss": 1.0, "val_loss": 1.25, "val_accuracy": 0.75, "val_metric": 0.75},
    ]
    assert layer_rows(spec, level()) == [
        common | {"name": "z", "kept_weights": 3, "weights": 4, "density": 0.75},
        common | {"name": "a", "kept_weights": 1, "weights": 2, "density": 0.5},
    ]


def test_a_level_is_read_as_it_was_written():
    outputs = LevelOutputs(
        weights={}, kept={}, curve=level().curve, diverged=False, test_loss=1.75, test_metric=0.625,
        early_stop_iteration=20, early_stop_test_metric=0.5, iterations=20, train_seconds=0.25,
    )  # fmt: skip
    next_mask = {"z": tensor([[True, False], [False, True]]), "a": tensor([False, True])}
    written = to_entry(outputs, number=2, mask=MASK, next_mask=next_mask, final_weights={"b": tensor([0.1])})
    read = from_entry(written, "k", reused=True)
    # The order of tensors must not change, because it breaks ties between equal scores.
    assert (list(read.mask), list(read.next_mask)) == (["z", "a"], ["z", "a"])
    assert {n: kept.tolist() for n, kept in read.mask.items()} == {n: kept.tolist() for n, kept in MASK.items()}
    assert {n: kept.tolist() for n, kept in read.next_mask.items()} == {n: k.tolist() for n, k in next_mask.items()}
    assert read.final_weights["b"].tolist() == tensor([0.1]).tolist()
    assert (read.curve, read.number, read.key, read.reused) == (level().curve, 2, "k", True)
    assert (read.test_loss, read.train_seconds, read.val_loss, read.val_metric) == (1.75, 0.25, 1.25, 0.75)


def test_store_records_are_compatible_with_older_versions_in_both_directions():
    outputs = LevelOutputs(
        weights={}, kept={}, curve=level().curve, diverged=False, test_loss=1.75, test_metric=0.625,
        early_stop_iteration=20, early_stop_test_metric=0.5, iterations=20, train_seconds=0.25,
    )  # fmt: skip
    entry = to_entry(outputs, number=2, mask=MASK, next_mask=None, final_weights={}, trained_with=TRAINED_WITH)
    assert entry.record["test_accuracy"] == entry.record["test_metric"] == 0.625
    older = {name: value for name, value in entry.record.items() if not name.endswith("_metric")}
    assert from_entry(replace(entry, record=older), "k", reused=True).figures == FIGURES


def test_the_training_environment_is_null_for_older_records():
    outputs = LevelOutputs(weights={}, kept={}, curve=level().curve, diverged=False, iterations=20, train_seconds=0.25)
    entry = to_entry(outputs, number=2, mask=MASK, next_mask=None, final_weights={}, trained_with=TRAINED_WITH)
    older = {name: value for name, value in entry.record.items() if name not in TRAINED_WITH}
    read = from_entry(replace(entry, record=older), "k", reused=True).figures
    assert {name: read[name] for name in TRAINED_WITH} == dict.fromkeys(TRAINED_WITH)
