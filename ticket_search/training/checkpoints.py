"""Capture and restore the state of a training run between two iterations."""

import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from ticket_search.tasks.metric import Metric
from ticket_search.training.outcome import Point, Weights

if TYPE_CHECKING:
    from ticket_search.training.lane import Lane
    from ticket_search.training.request import Watch


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """The state of a training run between two iterations: everything that the remaining iterations depend on.

    Attributes:
        record: plain JSON data: the iteration, the curve, the seconds spent, and the states of the watch and the
            session.
        tensors: the weights, the optimizer state, the losses since the last evaluation, the best weights, the kept
            weights, and the tensors of the watch and the session.
    """

    record: dict[str, Any]
    tensors: Weights

    @property
    def iteration(self) -> int:
        """The number of finished iterations of the schedule."""
        return int(self.record["iteration"])


class Checkpoints(Protocol):
    """The place where a training run saves its state."""

    seconds: float
    """The minimum number of seconds between two saves."""

    def load(self) -> TrainingState | None:
        """Return the state that a run with the same inputs saved last; None if no state was saved."""

    def save(self, state: TrainingState) -> None:
        """Replace the saved state."""


@dataclass
class Course:
    """The progress of a training run, apart from its weights and the optimizer's state.

    Attributes:
        done: the number of finished iterations of the schedule.
        kept: copies of the weights, by the iteration after which each copy was made.
        curve: the evaluations so far.
        losses: the losses of the batches since the last evaluation.
        best: the lowest `Point.cost` so far.
        best_weights: the weights with that cost; empty before the first evaluation.
        seconds: the time that earlier processes spent on the run before this process resumed it.
        ended: whether the run ended early, because it diverged or because `LevelInputs.watch` ended it.
        diverged: whether the run diverged.
    """

    done: int
    kept: dict[int, Weights] = field(default_factory=dict)
    curve: list[Point] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    best: float = math.inf
    best_weights: Weights = field(default_factory=dict)
    seconds: float = 0.0
    ended: bool = False
    diverged: bool = False


def capture(course: Course, lane: "Lane", watch: "Watch | None", seconds: float) -> TrainingState:
    """Return the state of a training run between two iterations, with its tensors copied to the CPU."""
    tensors = _under("weights", lane.weights()) | _under("optimizer", lane.optimizer_state())
    tensors |= _under("best", course.best_weights)
    for iteration, weights in course.kept.items():
        tensors |= _under(f"kept/{iteration}", weights)
    if course.losses:
        tensors["losses"] = torch.stack(course.losses)
    curve = [list(astuple(point)) for point in course.curve]
    record = {"iteration": course.done, "curve": curve, "seconds": seconds, "kept": sorted(course.kept)}
    if watch:
        record["watch"], remembered = watch.state()
        tensors |= _under("watch", remembered)
    session, remembered = lane.session.state()
    if session or remembered:
        record["session"] = session
        tensors |= _under("session", remembered)
    # Copy even tensors that are already on the CPU: they share memory with the lane, and the next update overwrites it.
    return TrainingState(
        record=record, tensors={n: value.detach().to("cpu", copy=True) for n, value in tensors.items()}
    )


def restore(state: TrainingState, lane: "Lane", watch: "Watch | None", metric: Metric) -> Course:
    """Restore a lane and a watch, and return the run's progress. This is the inverse of `capture`."""
    names, device, tensors = list(lane.weights()), lane.device, state.tensors

    def moved(prefix: str) -> Weights:
        """Return the tensors under a prefix, in the network's order, on the device."""
        saved = _below(prefix, tensors)
        return {name: saved[name].to(device) for name in names if name in saved}

    lane.load(moved("weights"))
    lane.load_optimizer_state({name: value.to(device) for name, value in _below("optimizer", tensors).items()})
    if watch:
        watch.restore(state.record["watch"], _below("watch", tensors))
    if "session" in state.record:
        lane.session.restore(state.record["session"], _below("session", tensors))
    curve = [Point(iteration=i, train_loss=t, val_loss=v, val_metric=a) for i, t, v, a in state.record["curve"]]
    return Course(
        done=state.iteration,
        kept={k: moved(f"kept/{k}") for k in state.record["kept"]},
        curve=curve,
        losses=list(tensors["losses"].to(device).unbind()) if "losses" in tensors else [],
        best=min((point.cost(metric) for point in curve), default=math.inf),
        best_weights=moved("best"),
        seconds=state.record["seconds"],
    )


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> Weights:
    return {f"{prefix}/{name}": value for name, value in tensors.items()}


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> Weights:
    return {n.removeprefix(f"{prefix}/"): value for n, value in tensors.items() if n.startswith(f"{prefix}/")}
