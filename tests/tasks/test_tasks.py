"""Tasks are found by name, and a user's task works like the package's own."""

import dataclasses
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import regression_task
import torch

from ticket_search.config.trajectory import ModelSpec, TrajectorySpec
from ticket_search.errors import DataError, SpecError
from ticket_search.lottery.finished import FinishedTrajectory
from ticket_search.lottery.ticket import Ticket, load_ticket
from ticket_search.lottery.trajectory import run_trajectory
from ticket_search.pruning.masks import kept_weights
from ticket_search.store.level_store import LevelStore
from ticket_search.tasks.classification import ACCURACY, Classification
from ticket_search.tasks.registry import load_task, task_digest, task_kind
from ticket_search.training.executors import plain

REGRESSION = {"task": "regression_task:Regression", "model.name": "regression_task:network", "dataset.validation": 112}


@pytest.fixture
def regression(trajectory):
    """A factory for small trajectories on the regression task."""

    def make(changes=(), seed=0) -> TrajectorySpec:
        return trajectory({**REGRESSION, "training.iterations": 60, "pruning_rate": 0.5, **dict(changes)}, seed=seed)

    return make


def run(spec, folder, **options):
    return list(run_trajectory(spec, load_task(spec, Path()), LevelStore(folder), **options))


class TestNames:
    def test_the_classification_of_images(self):
        kind = task_kind("classification")
        assert isinstance(kind, Classification)
        assert (kind.name, kind.metric, task_digest("classification")) == ("classification", ACCURACY, "")

    def test_a_users_task(self):
        assert task_kind("regression_task:Regression").metric == regression_task.ERROR
        assert len(task_digest("regression_task:Regression")) == 64

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            (
                "clasification",
                r"unknown task 'clasification' \(did you mean 'classification'\?\); known: classification",
            ),
            ("regression_task:Missing", "'regression_task:Missing': the module has no function 'Missing'"),
            ("regression_task:network", r"task 'regression_task:network': the function raised TypeError: network\(\)"),
            ("regression_task:Metric.x", "unknown task"),
            ("collections:OrderedDict", "the function returned OrderedDict.*, not a ticket_search.tasks.task.TaskKind"),
        ],
    )
    def test_invalid_names_are_refused(self, name, message):
        with pytest.raises(SpecError, match=message):
            task_kind(name)

    def test_a_specification_names_its_task(self, trajectory, search):
        with pytest.raises(SpecError, match=r"task: unknown task 'speech'; known: classification, package.module:fun"):
            trajectory({"task": "speech"})
        spec = search({"pruning_rate": [0.2]}, base=REGRESSION)
        assert spec.trajectory_at({"pruning_rate": 0.2}, 0).task == "regression_task:Regression"

    def test_the_driver_needs_no_torch(self):
        code = (
            "import sys; from pathlib import Path\n"
            "from ticket_search.config.trajectory import *; from ticket_search.tasks.registry import task_kind\n"
            "kind = task_kind('classification'); dataset = DatasetSpec(name='digits', validation=300)\n"
            "print(kind.metric.name, kind.read(dataset, Path()).size, 'torch' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert (done.stderr, done.stdout.split()) == ("", ["accuracy", str(1797 * (64 + 8)), "False"])


class TestUsersExceptions:
    @pytest.mark.parametrize("method", ["read", "check"])
    def test_become_one_line_that_names_the_class(self, regression, monkeypatch, method):
        def fail(self, *arguments):
            raise KeyError("no\nsuch column")

        monkeypatch.setattr(regression_task.Regression, method, fail)
        kind = task_kind("regression_task:Regression")
        with pytest.raises(SpecError) as error:
            kind.check(regression(), kind.read(None, Path()))
        message = rf"task 'regression_task:Regression': Regression.{method} raised KeyError: .* \({__file__}:\d+\)"
        assert re.fullmatch(message, str(error.value))

    def test_data_errors_are_passed_on(self, monkeypatch):
        def fail(self, *arguments):
            raise DataError("no numbers here; fetch them")

        monkeypatch.setattr(regression_task.Regression, "read", fail)
        with pytest.raises(DataError, match=r"^no numbers here; fetch them$"):
            task_kind("regression_task:Regression").read(None, Path())

    @pytest.mark.parametrize("metric", [property(lambda self: 1 / 0), "accuracy"])
    def test_an_invalid_metric_is_refused(self, monkeypatch, metric):
        monkeypatch.setattr(regression_task.Regression, "metric", metric)
        with pytest.raises(SpecError, match=r"task 'regression_task:Regression': .*(ZeroDivision|metric is 'acc)"):
            task_kind("regression_task:Regression")

    def test_a_check_that_returns_nothing_is_refused(self, regression, monkeypatch):
        monkeypatch.setattr(regression_task.Regression, "check", lambda self, *arguments: None)
        with pytest.raises(SpecError, match=r"Regression.check returned None, not a ticket_search.tasks.task.Fit"):
            task_kind("regression_task:Regression").check(regression(), None)


class TestEvaluation:
    def test_batches_are_halved_if_gpu_memory_is_exhausted(self, digits, monkeypatch):
        network, sizes = digits.build(ModelSpec(name="lenet_8"), seed=0), []
        whole = digits.score(network, "validation", "fp32")
        forward = network.forward

        def small_memory(images):
            sizes.append(len(images))
            if len(images) > 100:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return forward(images)

        monkeypatch.setattr(network, "forward", small_memory)
        halved = digits.score(network, "validation", "fp32")
        assert max(size for size in sizes if size <= 100) == 62
        assert halved.value == whole.value
        assert halved.loss == pytest.approx(whole.loss)

    def test_running_out_of_memory_on_one_image_is_an_error(self, digits, monkeypatch):
        network = digits.build(ModelSpec(name="lenet_8"), seed=0)

        def no_memory(images):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(network, "forward", no_memory)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            digits.score(network, "validation", "fp32")


class TestRegression:
    def test_levels_are_pruned_and_judged_by_the_error(self, regression, tmp_path):
        levels = run(regression(), tmp_path)
        assert [kept_weights(level.mask) for level in levels] == [216, 108, 54]
        dense, ticket, _ = levels
        assert 0 < dense.val_metric < 1.4
        assert regression_task.ERROR.matches(ticket.val_metric, dense.val_metric, 1.0)
        assert all(math.isnan(p.val_loss) and math.isfinite(p.train_loss) for p in dense.curve)
        assert math.isnan(dense.test_loss)
        assert not dense.diverged

    def test_the_early_stop_iteration_has_the_lowest_error(self, regression, tmp_path):
        (dense, *_) = run(regression({"training.evaluate_every": 5, "training.optimizer.lr": 0.1}), tmp_path)
        best = min(dense.curve, key=lambda point: point.val_metric)
        assert dense.early_stop_iteration == best.iteration < 60

    @pytest.mark.parametrize("criterion", ["snip", "grasp", "synflow", "movement"])
    def test_every_criterion_prunes_it(self, regression, tmp_path, criterion):
        levels = run(regression({"criterion": criterion, "target_densities": [0.25], "max_levels": None}), tmp_path)
        assert [kept_weights(level.mask) for level in levels] == [216, 54]

    def test_the_state_of_its_session_survives_a_checkpoint(self, regression, tmp_path, monkeypatch):
        class Killed(Exception):
            pass

        loss, at = regression_task.Draws.loss, []

        def killed(self, network, iteration):
            if iteration in (7, 33) and iteration not in at:
                at.append(iteration)
                raise Killed
            return loss(self, network, iteration)

        whole = run(regression(), tmp_path / "whole")
        monkeypatch.setattr(regression_task.Draws, "loss", killed)
        for _ in range(2):
            with pytest.raises(Killed):
                run(regression(), tmp_path / "killed", checkpoint_seconds=0.0)
        pieces = run(regression(), tmp_path / "killed", checkpoint_seconds=0.0)
        assert [level.key for level in pieces] == [level.key for level in whole]
        assert [[p.train_loss for p in level.curve] for level in pieces] == [
            [p.train_loss for p in level.curve] for level in whole
        ]
        assert [level.test_metric for level in pieces] == [level.test_metric for level in whole]

    def test_a_nan_metric_counts_as_divergence(self, regression, tmp_path, monkeypatch):
        from ticket_search.errors import Diverged

        score = regression_task.OnDevice.score
        monkeypatch.setattr(
            regression_task.OnDevice, "score", lambda *a: dataclasses.replace(score(*a), value=float("nan"))
        )
        with pytest.raises(Diverged, match="level 0 was not finite at iteration 20"):
            run(regression(), tmp_path)

    def test_the_errors_at_the_ends_of_a_line_are_those_of_the_copies(self, regression, tmp_path):
        spec = regression()
        run(spec, tmp_path)
        finished = FinishedTrajectory(spec, load_task(spec, Path()), LevelStore(tmp_path))
        one, other = finished.train_copy(1, 0), finished.train_copy(1, 1)
        line = finished.errors_between(one, other, 3)
        assert (line[0].val_error, line[-1].test_error) == (one.val_metric, other.test_metric)

    def test_a_ticket_can_be_written_and_loaded(self, regression, tmp_path):
        spec = regression()
        run(spec, tmp_path / "store")
        finished = FinishedTrajectory(spec, load_task(spec, Path()), LevelStore(tmp_path / "store"))
        ticket = finished.ticket(1, "a/1", {})
        (tmp_path / "t.safetensors").write_bytes(ticket.to_bytes())
        network = load_ticket(tmp_path / "t.safetensors", allow_code=True)
        assert network.ticket.inputs == ticket.inputs == {"features": 8}
        assert network.ticket.key == ticket.key == Ticket.from_entry(ticket.to_entry()).key
        assert network(torch.ones(2, 8)).shape == (2, 1)

    def test_a_network_for_images_is_refused(self, regression, tmp_path):
        with pytest.raises(SpecError, match="model 'lenet_16' classifies images, but the task builds networks from "):
            run(regression({"model.name": "lenet_16"}), tmp_path)

    def test_saliency_without_a_sample_is_refused(self, regression, tmp_path, monkeypatch):
        monkeypatch.delattr(regression_task.OnDevice, "sample")
        with pytest.raises(SpecError, match="a task judged by 'squared_error' provides no sample for saliency"):
            run(regression({"criterion": "snip"}), tmp_path)

    def test_level_keys_depend_on_the_source_of_the_task(self, regression, trajectory, tmp_path, monkeypatch):
        spec = regression({"max_levels": 1})
        first = run(spec, tmp_path)
        monkeypatch.setattr("ticket_search.lottery.context.task_digest", lambda name: "0" * 64)
        changed = run(spec, tmp_path)
        assert not {level.key for level in first} & {level.key for level in changed}


def test_a_training_run_uses_the_given_task(digits, trajectory, tmp_path, monkeypatch):
    """Training requests contain the task that was passed to the trajectory."""
    seen = []
    train = plain.train
    monkeypatch.setattr(plain, "train", lambda request: seen.append(request.task) or train(request))
    list(run_trajectory(trajectory({"max_levels": 1}), digits, LevelStore(tmp_path)))
    assert seen == [digits, digits]
