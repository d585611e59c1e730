"""Tests that call the driver of a search directly, without an engine."""

import json
from collections import Counter
from dataclasses import asdict

import pyarrow.parquet as pq
import pytest

from ticket_search.results.events import read_events
from ticket_search.results.reading import load_results
from ticket_search.search.driver import SearchDriver
from ticket_search.search.reports import EndReport, LevelReport
from ticket_search.search.suggestions import SuggestionRecord

SPACE = {"pruning_rate": [0.5, 0.25, 0.2], "training.optimizer.lr": [0.1, 0.2]}


def report(suggestion, level, accuracy=0.9, dense=0.9):
    """Return the report of a level of a network with 100 weights. Each level prunes half of the remaining weights."""
    trajectory = {"trajectory_id": suggestion.trajectory_id, "level": level}
    kept = 100 >> level
    row = trajectory | {
        "level_key": f"key{level}",
        "pruning_rate": suggestion.values["pruning_rate"],
        "strategy": "layerwise",
        "criterion": "magnitude",
        "rewind_iteration": 0,
        "seed": suggestion.seed,
        "kept_weights": kept,
        "prunable_weights": 100,
        "density": kept / 100,
        "compression": 100 / kept,
        "val_loss": 0.5,
        "metric": "accuracy",
        "higher_is_better": True,
        "val_metric": accuracy,
        "dense_val_metric": dense,
        "val_accuracy": accuracy,
        "test_loss": 0.5,
        "test_accuracy": accuracy,
        "dense_val_accuracy": dense,
        "dense_test_accuracy": dense,
        "matching": accuracy >= dense,
        "early_stop_iteration": 10,
        "early_stop_test_accuracy": accuracy,
        "iterations": 40,
        "train_seconds": 1.5,
        "reused": False,
    }
    points = [trajectory | {"iteration": i, "train_loss": 1.0, "val_loss": 0.5, "val_accuracy": 0.5} for i in (20, 40)]
    layers = [trajectory | {"name": name, "kept_weights": kept // 2, "weights": 50, "density": 0.5} for name in "ab"]
    return LevelReport(level=row, curve=points, layers=layers)


def finish(search, suggestion, *accuracies, **end):
    """Report a whole trajectory: the dense network, a level for each accuracy, and the end."""
    for level, accuracy in enumerate((0.9, *accuracies)):
        search.level_finished(suggestion.number, report(suggestion, level, accuracy))
    search.ended(suggestion.number, EndReport(**{"status": "completed"} | end))


def rows(run_dir, table):
    return pq.ParquetDataset(run_dir / table).read().to_pylist()


@pytest.fixture
def spec(search):
    return search(SPACE, seeds=(0, 1), sampler="grid", trials=5, early_stopping=None)


class TestTheTables:
    def test_contain_each_level_once(self, spec, tmp_path):
        driven = SearchDriver(spec, tmp_path)
        first, second = driven.next(), driven.next()
        for level in (0, 1):
            for suggestion in (first, second):
                driven.level_finished(suggestion.number, report(suggestion, level))
        driven.flush()
        keys = [(row["trajectory_id"], row["level"]) for row in rows(tmp_path, "levels")]
        a, b = first.trajectory_id, second.trajectory_id
        assert keys == [(a, 0), (b, 0), (a, 1), (b, 1)]
        assert Counter((r["trajectory_id"], r["level"]) for r in rows(tmp_path, "curves")) == dict.fromkeys(keys, 2)
        assert Counter((r["trajectory_id"], r["level"]) for r in rows(tmp_path, "layers")) == dict.fromkeys(keys, 2)

    def test_contain_the_searched_fields(self, spec, tmp_path):
        driven = SearchDriver(spec, tmp_path)
        finish(driven, driven.next())
        driven.flush()
        for table in ("levels", "trajectories"):
            (row,) = rows(tmp_path, table)
            assert (row["pruning_rate"], row["training.optimizer.lr"], row["seed"]) == (0.5, 0.1, 0)

    def test_say_how_a_trajectory_ended(self, spec, tmp_path):
        driven = SearchDriver(spec, tmp_path)
        finish(driven, driven.next(), 0.9, 0.95, 0.5)
        finish(driven, driven.next(), 0.5, status="stopped", reason="no match")
        driven.ended(driven.next().number, EndReport(status="diverged", reason="level 0"))
        driven.ended(driven.next().number, EndReport(status="failed", reason="E: x", error="trace"))
        driven.started(driven.next().number)
        driven.flush()
        names = ("status", "reason", "levels", "score", "sparsest_matching_density", "iterations", "train_seconds")
        assert [tuple(row[name] for name in (*names, "error")) for row in rows(tmp_path, "trajectories")] == [
            ("completed", None, 4, 2.0, 0.25, 160, 6.0, None),
            ("stopped", "no match", 2, 0.0, None, 80, 3.0, None),
            ("diverged", "level 0", 0, None, None, 0, 0.0, None),
            ("failed", "E: x", 0, None, None, 0, 0.0, "trace"),
            ("running", None, 0, None, None, 0, 0.0, None),
        ]
        assert driven.progress.counts == {"running": 1, "completed": 1, "stopped": 1, "diverged": 1, "failed": 1}
        assert (driven.progress.done, driven.progress.levels) == (4, 6)

    def test_can_be_read_while_it_runs(self, spec, tmp_path):
        driven = SearchDriver(spec, tmp_path)
        finish(driven, driven.next(), 0.95)
        driven.flush()
        results = load_results(tmp_path)
        assert results.levels["level"].tolist() == [0, 1]
        assert results.trajectories["status"].tolist() == ["completed"]

    def test_a_trajectory_that_is_replayed_after_its_worker_died_adds_no_duplicate_rows(self, spec, tmp_path):
        driven = SearchDriver(spec, tmp_path)
        suggestion = driven.next()
        for level in (0, 1, 2):
            driven.level_finished(suggestion.number, report(suggestion, level))
        driven.started(suggestion.number)
        finish(driven, suggestion, 0.9, 0.9, 0.5)
        driven.flush()
        assert [row["level"] for row in rows(tmp_path, "levels")] == [0, 1, 2, 3]
        assert (len(rows(tmp_path, "curves")), len(rows(tmp_path, "layers"))) == (8, 8)
        (row,) = rows(tmp_path, "trajectories")
        assert (row["levels"], row["iterations"], row["train_seconds"]) == (4, 160, 6.0)
        assert (row["score"], row["sparsest_matching_density"], row["status"]) == (2.0, 0.25, "completed")


class TestSearch:
    def test_a_suggestion_is_recorded_before_it_is_returned(self, spec, tmp_path):
        driven = SearchDriver(spec, tmp_path)
        for count in (1, 2, 3):
            suggestion = driven.next()
            lines = (tmp_path / "suggestions.jsonl").read_text().splitlines()
            assert len(lines) == count
            assert json.loads(lines[-1]) == asdict(suggestion)

    def test_trials_cap_the_suggestions(self, spec, tmp_path):
        driven = SearchDriver(spec, tmp_path)
        assert [driven.next() is None for _ in range(7)] == [False] * 5 + [True] * 2
        assert (driven.progress.trials, driven.progress.exhausted) == (5, False)

    @pytest.mark.parametrize("sampler", ["grid", "tpe", "random", "nsga2"])
    def test_an_exhausted_space_ends_the_search(self, search, tmp_path, sampler):
        driven = SearchDriver(search({"pruning_rate": [0.5, 0.2]}, seeds=(0, 1), sampler=sampler, trials=9), tmp_path)
        assert driven.progress.trials == 4
        assert [driven.next() is None for _ in range(5)] == [False] * 4 + [True]

    def test_a_grid_without_trials_takes_every_point(self, search, tmp_path):
        driven = SearchDriver(search(SPACE, seeds=(0, 1), sampler="grid", trials=None), tmp_path)
        assert driven.progress.trials == 12
        assert [driven.next() is None for _ in range(13)] == [False] * 12 + [True]

    @pytest.mark.parametrize("sampler", ["grid", "tpe", "nsga2"])
    def test_a_point_with_three_incompatible_fields_fails_alone(self, search, tmp_path, sampler):
        """Any two of the fields are compatible, so the check before the start finds nothing: it looks only at pairs."""
        space = {
            "training.iterations": [400, 120],
            "pruning.early_bird.window": [2, 6],
            "pruning.early_bird.every": [10, 60],
            "pruning_rate": {"low": 0.1, "high": 0.9, "step": 1e-4} if sampler == "grid" else {"low": 0.1, "high": 0.9},
        }
        base = {"early_bird": {"window": 2, "every": 10}}
        spec = search(space, base=base, seeds=(0,), sampler=sampler, trials=None if sampler == "grid" else 40)
        if sampler == "grid":
            spec = spec.model_copy(update={"space": spec.space | {"pruning_rate": (0.5,)}})
        ended = []
        driven = SearchDriver(spec, tmp_path, lambda progress, row: ended.append(row))
        handed_out = []
        while (suggestion := driven.next()) is not None:
            handed_out.append(suggestion)
            driven.ended(suggestion.number, EndReport(status="completed"))
        failed = [row for row in ended if row["status"] == "failed"]
        assert len(failed) + len(handed_out) == (8 if sampler == "grid" else 40)
        assert failed
        assert all(
            "6 masks, one every 60 iterations, need 360 iterations, but level 0 has 120" in row["reason"]
            for row in failed
        )
        assert not [s for s in handed_out if list(s.values.values())[:3] == [120, 6, 60]]
        driven.flush()
        assert SearchDriver(spec, tmp_path).progress.counts["completed"] == len(handed_out)

    def test_the_best_ticket_is_the_sparsest_matching_one(self, spec, tmp_path):
        driven = SearchDriver(spec, tmp_path)
        first = driven.next()
        driven.level_finished(first.number, report(first, 0))
        assert driven.progress.best is None
        driven.level_finished(first.number, report(first, 1))
        driven.level_finished(first.number, report(first, 2, 0.5))
        assert driven.progress.best["level"] == 1
        finish(driven, driven.next(), 0.5, 0.95)
        assert (driven.progress.best["seed"], driven.progress.best["density"]) == (1, 0.25)
        finish(driven, driven.next(), 0.99)
        assert driven.progress.best["density"] == 0.25

    def test_the_listener_is_called_for_every_ended_trajectory(self, spec, tmp_path):
        told = []
        driven = SearchDriver(
            spec, tmp_path, lambda progress, row: told.append((progress.done, row["status"], row["score"]))
        )
        finish(driven, driven.next(), 0.9)
        driven.ended(driven.next().number, EndReport(status="failed"))
        assert told == [(1, "completed", 1.0), (2, "failed", None)]

    def test_early_stopping_sees_every_level(self, search, tmp_path):
        rules = {"collapse": 0.2, "collapse_levels": 2}
        driven = SearchDriver(search(SPACE, sampler="grid", early_stopping=rules), tmp_path)
        suggestion = driven.next()
        said = [driven.level_finished(0, report(suggestion, n, a)) for n, a in enumerate((0.9, 0.5, 0.5))]
        assert [reason is not None for reason in said] == [False, False, True]
        said = [driven.level_finished(0, report(suggestion, n, a)) for n, a in enumerate((0.9, 0.5))]
        assert said == [None, None]

    def test_starts_restarts_and_ends_are_logged(self, spec, tmp_path):
        driven = SearchDriver(spec, tmp_path)
        suggestion = driven.next()
        driven.started(suggestion.number)
        driven.started(suggestion.number)
        finish(driven, suggestion)
        events = [(event["event"], event["trajectory_id"]) for event in read_events(tmp_path)]
        names = ("trajectory_started", "trajectory_restarted", "trajectory_ended")
        assert events == [(name, suggestion.trajectory_id) for name in names]


class TestDeadWorker:
    def test_its_trajectory_is_suggested_again_first(self, spec, tmp_path):
        driven = SearchDriver(spec, tmp_path)
        first, second = driven.next(), driven.next()
        assert driven.hand_out_again(first.number)
        assert driven.unfinished == 1
        assert [driven.next().number, driven.next().number] == [first.number, second.number + 1]

    def test_taking_a_trajectory_back_does_not_count_as_a_failure(self, spec, tmp_path):
        driven = SearchDriver(spec, tmp_path)
        first = driven.next()
        for _ in range(spec.search.max_failures + 1):
            driven.started(first.number)
            assert driven.progress.counts["running"] == 1
            driven.take_back(first.number)
            assert (driven.unfinished, driven.progress.counts["running"]) == (0, 0)
            assert driven.next() == first
        assert driven.hand_out_again(first.number)

    def test_a_trajectory_with_too_many_failures_is_not_suggested_again(self, spec, tmp_path):
        driven = SearchDriver(spec, tmp_path)
        for _ in range(spec.search.max_failures):
            assert driven.hand_out_again(driven.next().number)
        assert not driven.hand_out_again(driven.next().number)
        assert driven.unfinished == 1


class TestResume:
    def test_a_trajectory_whose_rows_were_removed_is_suggested_again(self, spec, tmp_path):
        driven = SearchDriver(spec, tmp_path)
        first = driven.next()
        finish(driven, first, 0.9)
        driven.flush()
        (tmp_path / "levels" / "part-00000.parquet").unlink()
        again = SearchDriver(spec, tmp_path)
        assert again.next() == first
        finish(again, first, 0.9)
        again.flush()
        assert [row["level"] for row in rows(tmp_path, "levels")] == [0, 1]

    def test_after_a_kill(self, spec, tmp_path):
        driven = SearchDriver(spec, tmp_path)
        finish(driven, driven.next(), 0.9, 0.9)
        finish(driven, driven.next(), 0.5, status="stopped", reason="no match")
        half, failed = driven.next(), driven.next()
        driven.level_finished(half.number, report(half, 0))
        driven.ended(failed.number, EndReport(status="failed", reason="x", error="y"))
        driven.flush()

        again = SearchDriver(spec, tmp_path)
        assert again.progress.counts == {"running": 0, "completed": 1, "stopped": 1, "diverged": 0, "failed": 0}
        assert (again.progress.best["density"], again.progress.best["seed"]) == (0.25, 0)
        # A resumed search first suggests the running and failed trajectories again, and then new ones.
        assert [again.next(), again.next()] == [half, failed]
        fifth = again.next()
        assert (fifth.number, again.next()) == (4, None)
        for suggestion in (half, failed, fifth):
            finish(again, suggestion, 0.9)
        again.flush()
        assert [r["status"] for r in rows(tmp_path, "trajectories")] == [
            "completed",
            "stopped",
            "completed",
            "completed",
            "completed",
        ]
        assert [r["error"] for r in rows(tmp_path, "trajectories")] == [None] * 5
        keys = [(r["trajectory_id"], r["level"]) for r in rows(tmp_path, "levels")]
        assert (len(keys), len(set(keys))) == (3 + 2 + 2 + 2 + 2, 11)
        assert len(SuggestionRecord(tmp_path).read()) == 5

    def test_after_a_kill_before_the_first_flush(self, spec, tmp_path):
        driven = SearchDriver(spec, tmp_path)
        suggestion = driven.next()
        finish(driven, suggestion, 0.9)
        again = SearchDriver(spec, tmp_path)
        assert again.next() == suggestion
        assert again.next().number == 1

    @pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
    def test_makes_the_same_suggestions_as_without_a_restart(self, search, tmp_path, sampler):
        space = {"pruning_rate": {"low": 0.1, "high": 0.9}, "training.optimizer.lr": [0.1, 0.2]}
        spec, made = search(space, sampler=sampler, early_stopping=None), {}
        for folder, restarts in (("whole", ()), ("cut", (9, 10, 16))):
            driven = SearchDriver(spec, tmp_path / folder)
            for number in range(18):
                if number in restarts:
                    driven.flush()
                    driven = SearchDriver(spec, tmp_path / folder)
                suggestion = driven.next()
                made.setdefault(folder, []).append(suggestion)
                finish(driven, suggestion, 0.9 if suggestion.values["pruning_rate"] < 0.5 else 0.7)
        assert made["cut"] == made["whole"]

    def test_a_raised_number_of_trials(self, search, spec, tmp_path):
        driven = SearchDriver(spec, tmp_path)
        while (suggestion := driven.next()) is not None:
            finish(driven, suggestion)
        driven.flush()
        longer = search(SPACE, seeds=(0, 1), sampler="grid", trials=7, early_stopping=None)
        again = SearchDriver(longer, tmp_path)
        assert [again.next().number for _ in range(2)] == [5, 6]
        assert again.next() is None

    def test_earlier_trajectories_still_count_in_the_comparison(self, search, tmp_path):
        rules = {"collapse": 1.0, "margin": 0.01, "patience": 1, "min_trajectories": 2, "worst_fraction": 0.5}
        spec = search(SPACE, sampler="grid", early_stopping=rules)
        driven = SearchDriver(spec, tmp_path)
        finish(driven, driven.next(), 0.8)
        driven.flush()
        again = SearchDriver(spec, tmp_path)
        suggestion = again.next()
        said = [again.level_finished(suggestion.number, report(suggestion, n, a)) for n, a in enumerate((0.9, 0.5))]
        assert said == [
            None,
            "no match for 1 level, and 1 of 1 other trajectories did as well or better at compression 2",
        ]


def test_a_resumed_trajectory_is_not_stopped_at_a_level_that_it_had_passed(search, tmp_path):
    """Other trajectories have since done so well that the rules alone would now stop this one at level 2."""
    rules = {"patience": 2, "worst_fraction": 0.5, "min_trajectories": 3, "collapse": 0.9}
    spec = search(SPACE, early_stopping=rules)
    driven = SearchDriver(spec, tmp_path)
    mine = driven.next()
    accuracies = (0.9, 0.8, 0.8, 0.8, 0.95)
    for level, accuracy in enumerate(accuracies):
        driven.level_finished(mine.number, report(mine, level, accuracy))
    for _ in range(4):
        finish(driven, driven.next(), 0.9, 0.9, 0.9, 0.9, 0.9)
    driven.flush()
    again = SearchDriver(spec, tmp_path)
    assert again.next() == mine
    for level, accuracy in enumerate(accuracies):
        assert again.level_finished(mine.number, report(mine, level, accuracy)) is None
    again.ended(mine.number, EndReport(status="completed"))
    again.flush()
    row = next(row for row in rows(tmp_path, "trajectories") if row["trajectory_id"] == mine.trajectory_id)
    assert (row["levels"], row["sparsest_matching_density"]) == (5, 0.06)


def test_a_space_smaller_than_the_trials_is_reported_as_exhausted(search, tmp_path):
    driven = SearchDriver(search({"pruning_rate": [0.2, 0.5]}, seeds=(0, 1), trials=100), tmp_path)
    while (suggestion := driven.next()) is not None:
        finish(driven, suggestion, 0.9)
    assert (driven.progress.done, driven.progress.exhausted) == (4, True)


def test_the_study_counts_stopped_trajectories_with_their_value(spec, tmp_path):
    driven = SearchDriver(spec, tmp_path)
    finish(driven, driven.next(), 0.9, 0.9)
    finish(driven, driven.next(), 0.9, 0.5, status="stopped", reason="no match")
    driven.ended(driven.next().number, EndReport(status="diverged", reason="level 0"))
    driven.ended(driven.next().number, EndReport(status="failed", error="trace"))
    trials = driven._sampler.study.trials
    assert [(trial.state.name, trial.value) for trial in trials] == [
        ("COMPLETE", 2.0),
        ("COMPLETE", 1.0),
        ("COMPLETE", -1.0),
        ("FAIL", None),
    ]
