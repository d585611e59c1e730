"""A user's own task and executor work with `run_search` without any change to the package."""

from pathlib import Path

import pandas as pd
import pytest

import ticket_search
from ticket_search.errors import SpecError

TESTS = Path(__file__).parents[1]
REGRESSION = {
    "name": "regression",
    "task": "regression_task:Regression",
    "dataset": {"name": "digits", "validation": 128},  # the name is ignored: the task generates its data
    "model": {"name": "regression_task:network"},
    "training": {
        "optimizer": {"name": "adam", "lr": 0.02},
        "batch_size": 32,
        "iterations": 120,
        "evaluate_every": 40,
    },
    "pruning": {"max_levels": 3},
    "controls": {"kinds": ["random_reinit"], "levels": "last"},
    "space": {"pruning_rate": [0.2, 0.7]},
    "seeds": [0, 1],
    "search": {"sampler": "grid", "tolerance": 0.02, "early_stopping": None},
}


@pytest.fixture
def on_the_path(monkeypatch):
    for folder in ("tasks", "lottery"):
        monkeypatch.syspath_prepend(TESTS / folder)


def run(space, output, **arguments):
    return ticket_search.run_search(space, output, say=lambda line: None, **({"engine": "inline"} | arguments))


def test_a_task_where_lower_is_better_gets_the_right_verdicts(on_the_path, tmp_path):
    results = run(REGRESSION, tmp_path / "run")
    levels = results.levels
    assert list(results.trajectories["status"]) == ["completed"] * 4
    assert (set(levels["task"]), set(levels["metric"])) == ({"regression_task:Regression"}, {"squared_error"})
    assert not levels["higher_is_better"].any()
    for name in ("val_accuracy", "test_accuracy", "dense_val_accuracy", "val_loss"):
        assert levels[name].isna().all()
    dense = levels[levels["level"] == 0].set_index("trajectory_id")["val_metric"]
    assert list(levels["dense_val_metric"]) == list(dense.loc[levels["trajectory_id"]])
    expected = levels["val_metric"] <= levels["dense_val_metric"] + 0.02 + 1e-9
    assert list(levels["matching"]) == list(expected)
    assert 0 < expected[levels["level"] > 0].sum() < (levels["level"] > 0).sum()  # some match, some do not
    sparsest = levels[levels["matching"] & (levels["level"] > 0)].groupby("trajectory_id")["density"].min()
    found = results.trajectories.set_index("trajectory_id")["sparsest_matching_density"].dropna()
    assert found.to_dict() == sparsest.to_dict()
    assert results.controls["val_metric"].notna().all()
    assert (results.curves.groupby(["trajectory_id", "level"])["val_metric"].first() > 0).all()


@pytest.mark.parametrize("engine", ["processes"])
def test_worker_processes_give_the_same_rows(on_the_path, tmp_path, engine):
    one, other = (
        run(REGRESSION, tmp_path / name, engine=name, settings={"search.max_concurrent": 1})
        for name in ("inline", engine)
    )
    columns = ["train_seconds", "reused"]
    pd.testing.assert_frame_equal(one.levels.drop(columns=columns), other.levels.drop(columns=columns))


def test_an_executor_may_train_trajectories_together_with_the_same_rows(on_the_path, tmp_path):
    import pair_executor

    made = []
    remember = pair_executor.Pair.__init__

    def remembered(pair):
        remember(pair)
        made.append(pair)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pair_executor.Pair, "__init__", remembered)
        settings = {"training.executor": "pair_executor:Pair"}
        paired = run(REGRESSION, tmp_path / "paired", settings=settings)
    together = [keys for pair in made for keys in pair.together]
    assert max(map(len, together)) == 2
    trained = paired.levels[~paired.levels["reused"]]
    assert set(trained["level_key"]) <= {key for keys in together for key in keys}
    alone = run(REGRESSION, tmp_path / "alone")
    # The executor is part of the level keys and the trajectory IDs.
    assert not set(paired.levels["level_key"]) & set(alone.levels["level_key"])
    order = ["pruning_rate", "seed", "level"]
    left_out = ["trajectory_id", "level_key", "train_seconds", "reused"]
    one, other = (
        table.levels.sort_values(order, ignore_index=True).drop(columns=left_out) for table in (paired, alone)
    )
    pd.testing.assert_frame_equal(one, other, check_exact=True)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def make():\n    raise OSError('no such device')", "the function raised OSError: no such device"),
        ("def make():\n    return 3", "the function returned 3, not a "),
    ],
)
def test_an_executor_that_cannot_be_made_is_refused_before_the_start(tmp_path, monkeypatch, code, message):
    name = f"executor_{abs(hash(code))}"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SpecError, match=message):
        run("digits", tmp_path / "run", settings={"training.executor": f"{name}:make"})
    assert not (tmp_path / "run").exists()


def test_a_metric_that_raises_fails_only_its_trajectory(on_the_path, tmp_path, monkeypatch):
    import regression_task

    score = regression_task.OnDevice.score

    def raise_on_the_test_split(task, network, split, precision):
        if split == "test":
            raise ZeroDivisionError("nothing to divide by")
        return score(task, network, split, precision)

    monkeypatch.setattr(regression_task.OnDevice, "score", raise_on_the_test_split)
    trajectories = run(REGRESSION, tmp_path / "run", trials=1).trajectories
    assert list(trajectories["status"]) == ["failed"]
    assert list(trajectories["reason"]) == ["ZeroDivisionError: nothing to divide by"]


def test_code_in_the_main_script_is_refused_by_engines_with_worker_processes(tmp_path):
    with pytest.raises(SpecError, match=r"'__main__:Mine' is defined in the script or notebook that runs the search"):
        run("digits", tmp_path / "run", engine="processes", settings={"task": "__main__:Mine"})
    assert not (tmp_path / "run").exists()
