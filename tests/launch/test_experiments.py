"""The papers' experiments can be run as searches."""

import pandas as pd
import pytest
from helpers import finished_levels

from ticket_search.errors import RunDirectoryError
from ticket_search.launch import preflight
from ticket_search.launch.disk import estimate
from ticket_search.launch.run import run_search
from ticket_search.results.reading import load_results

CONTROLS = {"kinds": ["random_reinit", "shuffled_mask"], "draws": 2, "levels": [2]}


def test_controls_have_rows_for_their_tickets(search, tmp_path):
    spec = search({"pruning_rate": [0.3, 0.5]}, seeds=(0, 1), base={"controls": CONTROLS}, sampler="grid", trials=None)
    run_search(spec, tmp_path / "run", engine="inline")
    results = load_results(tmp_path / "run")
    keys = ["trajectory_id", "level", "control", "draw"]
    assert len(results.controls) == 4 * 2 * 2
    assert not results.controls.duplicated(keys).any()
    assert results.controls["level_key"].is_unique
    both = results.controls.merge(results.levels, on=["trajectory_id", "level"], suffixes=("", "_of_ticket"))
    assert len(both) == 16
    assert (both["seed"] == both["seed_of_ticket"]).all()
    assert (both["density"] == both["density_of_ticket"]).all()
    assert both["test_accuracy"].between(0, 1).all()
    # Controls do not count as levels of the trajectory.
    assert (results.trajectories["levels"] == 3).all()
    assert (results.trajectories["iterations"] == 3 * 40).all()
    finished = finished_levels(tmp_path / "run")
    assert set(finished.values()) == {1}
    assert set(results.controls["level_key"]) <= set(finished)


def test_controls_requested_later_reuse_stored_ones(search, tmp_path):
    space, store = {"pruning_rate": [0.5]}, {"store": str(tmp_path / "store")}
    few, more = (
        search(space, seeds=(0,), base={"controls": CONTROLS | {"draws": n}}, sampler="grid", trials=None).model_copy(
            update=store
        )
        for n in (1, 2)
    )
    run_search(few, tmp_path / "few", engine="inline")
    run_search(more, tmp_path / "more", engine="inline")
    controls = load_results(tmp_path / "more").controls
    assert dict(zip(controls["draw"], controls["reused"], strict=True)) == {0: True, 1: False}
    figures = ["control", "level_key", "test_loss", "test_accuracy"]
    before = load_results(tmp_path / "few").controls[figures]
    pd.testing.assert_frame_equal(controls.loc[controls["draw"] == 0, figures].reset_index(drop=True), before)


def test_a_removed_table_of_controls_is_rebuilt(search, tmp_path):
    spec = search({"pruning_rate": [0.5]}, seeds=(0,), sampler="grid", trials=None)
    run_search(spec, tmp_path / "run", engine="inline")
    for file in (tmp_path / "run" / "controls").iterdir():
        file.unlink()
    (tmp_path / "run" / "controls").rmdir()
    with pytest.raises(RunDirectoryError, match="is damaged: it has no table controls/; `ticket-search resume"):
        load_results(tmp_path / "run")
    run_search(spec, tmp_path / "run", engine="inline")
    results = load_results(tmp_path / "run")
    assert (len(results.levels), len(results.controls)) == (3, 0)


@pytest.mark.parametrize("sampler", ["grid", "tpe"])
def test_schedules_criteria_and_retraining_are_searched_by_name(search, tmp_path, sampler):
    space = {
        "target_densities": [0.5, [0.5, 0.1]],
        "criterion": ["movement", "small_final"],
        "retrain": ["learning_rate", "finetune"],
    }
    spec = search(space, seeds=(0,), sampler=sampler, trials=8, base={"max_levels": None}, early_stopping=None)
    progress = run_search(spec, tmp_path / "run", engine="inline")
    assert progress.counts["completed"] == 8
    results = load_results(tmp_path / "run")
    assert results.trajectories.groupby("target_densities")["levels"].unique().map(list).to_dict() == {
        "0.5": [2],
        "[0.5, 0.1]": [3],
    }
    assert set(results.levels["retrain"]) == {"learning_rate", "finetune"}
    assert len(results.levels.drop_duplicates(["target_densities", "criterion", "retrain", "level"])) == 4 * 2 + 4 * 3
    again = run_search(spec, tmp_path / "run", engine="inline")
    assert again.levels == 0


def test_pruning_at_initialization_is_a_search_like_any_other(search, tmp_path):
    space = {"criterion": ["snip", "grasp", "synflow"], "target_densities": [0.3, 0.1]}
    base = {"max_levels": None, "strategy": "global"}
    spec = search(space, seeds=(0,), sampler="grid", trials=None, base=base, early_stopping=None)
    assert run_search(spec, tmp_path / "run", engine="inline").counts["completed"] == 6
    levels = load_results(tmp_path / "run").levels
    assert sorted(levels.loc[levels["level"] == 1, "kept_weights"].unique()) == [118, 355]


def test_the_estimate_counts_controls_and_the_weights_for_finetuning(search):
    def total(base):
        spec = search({"pruning_rate": [0.2]}, seeds=(0,), sampler="grid", trials=None, base=base)
        return estimate(spec, preflight.check(spec, local=False).sizes)

    plain, controls, finetune = total({}), total({"controls": CONTROLS}), total({"retrain": "finetune"})
    assert controls.masks > plain.masks
    assert controls.dense == plain.dense
    assert finetune.dense == pytest.approx(plain.dense + 2 * 4 * (64 * 16 + 16 + 16 * 10 + 10))


def test_early_bird_is_a_table_and_a_field_like_any_other(search, tmp_path):
    base = {"training.iterations": 119, "early_bird": {"window": 3, "threshold": 0.12}, "max_levels": 1}
    space = {"pruning_rate": [0.5], "pruning.early_bird.threshold": [0.12, 0.0001]}
    spec = search(space, seeds=(0,), base=base, sampler="grid", trials=None)
    run_search(spec, tmp_path / "run", engine="inline")
    results = load_results(tmp_path / "run")
    dense = results.levels[results.levels["level"] == 0].set_index("pruning.early_bird.threshold")
    assert dense.loc[0.12, "iterations"] < dense.loc[0.0001, "iterations"] == 119
    found = results.early_bird.groupby("trajectory_id")
    assert found["iteration"].max().to_dict() == {
        dense.loc[0.12, "trajectory_id"]: dense.loc[0.12, "iterations"],
        dense.loc[0.0001, "trajectory_id"]: 119,
    }
    last = results.early_bird[results.early_bird["iteration"] == dense.loc[0.12, "iterations"]]
    assert (last.loc[last["trajectory_id"] == dense.loc[0.12, "trajectory_id"], "distance"] < 0.12).all()
