"""A training run, from its request to its outputs. An executor makes the updates."""

import math
import time
from dataclasses import replace

import torch
from torch import Tensor

from ticket_search.training.checkpoints import Checkpoints, Course, capture, restore
from ticket_search.training.lane import Lane
from ticket_search.training.outcome import LevelOutputs, Point, Weights
from ticket_search.training.request import TrainRequest


class Training:
    """A training run in progress.

    It evaluates the network, calls the watch, keeps copies of weights, and saves checkpoints when these are due.

    As long as `is_done` is false, an executor makes update number `iteration` and passes its loss to `after_update`.

    Args:
        request: the training request; the run resumes from its checkpoint if it has one.
        lane: the lane that trains the level. The initial weights must already be loaded into it.
    """

    def __init__(self, request: TrainRequest, lane: Lane) -> None:
        self._started = time.perf_counter()
        self._request = request
        self._level = request.level
        self._lane = lane
        self._metric = request.task.metric
        self._checkpoints = request.checkpoints
        state = self._checkpoints and self._checkpoints.load()
        self._course = (
            restore(state, lane, self._level.watch, self._metric) if state else Course(done=self._level.start)
        )
        self._stop, self._every = request.stop, int(request.training.evaluate_every)
        if self._level.start == self._course.done and self._level.start in self._level.keep:
            self._course.kept[self._level.start] = self._snapshot()
        self._checkpoint_at = self._started + self._checkpoints.seconds if self._checkpoints else math.inf

    @property
    def iteration(self) -> int:
        """The number of finished updates of the schedule, which is also the index of the next update."""
        return self._course.done

    @property
    def is_done(self) -> bool:
        """Whether the run has made its last update."""
        return self._course.ended or self._course.done >= self._stop

    def after_update(self, loss: Tensor) -> None:
        """Record an update; then keep weights, call the watch, evaluate and save a checkpoint if these are due.

        Args:
            loss: the batch's loss, a scalar on the device. Its value is not read before the next evaluation, so most
                calls do not wait for the device.
        """
        course, level = self._course, self._level
        course.losses.append(loss)
        course.done += 1
        if course.done in level.keep:
            course.kept[course.done] = self._snapshot()
        if level.watch is not None and course.done % level.watch.every == 0:
            course.ended = level.watch(course.done, self._lane.weights())
        if course.done % self._every == 0 or self.is_done:
            self._evaluate()
        if self._checkpoints and not self.is_done and time.perf_counter() >= self._checkpoint_at:
            self._save(self._checkpoints)

    def outputs(self) -> LevelOutputs:
        """Return the outputs of the finished run.

        The test split is scored unless the run diverged or its request has a `LevelInputs.stop`.
        """
        course, level = self._course, self._level
        outputs = LevelOutputs(
            weights=self._snapshot(),
            kept={k: weights for k, weights in course.kept.items() if k in level.keep},
            curve=course.curve,
            diverged=course.diverged,
            iterations=course.done - level.start,
            train_seconds=self._seconds(),
        )
        return outputs if course.diverged or level.stop else self._tested(outputs)

    def _evaluate(self) -> None:
        course, score = self._course, self._lane.score("validation")
        train_loss = float(torch.stack(course.losses).mean())
        val_loss = math.nan if score.loss is None else score.loss
        point = Point(iteration=course.done, train_loss=train_loss, val_loss=val_loss, val_metric=score.value)
        course.curve.append(point)
        course.losses.clear()
        must_be_finite = [train_loss, score.value, *([] if score.loss is None else [score.loss])]
        if not all(map(math.isfinite, must_be_finite)):
            course.ended = course.diverged = True
        elif point.cost(self._metric) < course.best:
            course.best, course.best_weights = point.cost(self._metric), self._snapshot()

    def _save(self, checkpoints: Checkpoints) -> None:
        checkpoints.save(capture(self._course, self._lane, self._level.watch, self._seconds()))
        self._checkpoint_at = time.perf_counter() + checkpoints.seconds

    def _tested(self, outputs: LevelOutputs) -> LevelOutputs:
        last = self._lane.score("test")
        self._lane.load(self._course.best_weights or self._level.weights)
        return replace(
            outputs,
            test_loss=math.nan if last.loss is None else last.loss,
            test_metric=last.value,
            early_stop_iteration=min(outputs.curve, key=lambda point: point.cost(self._metric)).iteration,
            early_stop_test_metric=self._lane.score("test").value,
        )

    def _seconds(self) -> float:
        return self._course.seconds + time.perf_counter() - self._started

    def _snapshot(self) -> Weights:
        return {name: value.clone() for name, value in self._lane.weights().items()}
