"""A training between two iterations: how it is written down, and taken up again."""

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
    """All that the rest of a training depends on, between two iterations.

    Attributes:
        record: plain JSON data: the iteration, the curve so far, the seconds spent.
        tensors: weights, optimizer state, the losses since the last evaluation, the best weights and those kept so far.
    """

    record: dict[str, Any]
    tensors: Weights

    @property
    def iteration(self) -> int:
        """Iterations of the schedule that are done."""
        return int(self.record["iteration"])


class Checkpoints(Protocol):
    """Where a training keeps its state while it runs."""

    seconds: float
    """Between two states that are kept."""

    def load(self) -> TrainingState | None:
        """The state kept last, by a training with the same inputs; None if there is none."""

    def save(self, state: TrainingState) -> None:
        """Keep a state instead of the last one."""


@dataclass
class Course:
    """What a training has come to so far, beside its weights and the optimizer's state.

    Attributes:
        done: iterations of the schedule.
        kept: iteration -> weights.
        curve: the evaluations.
        losses: of the batches since the last of them.
        best: the least `Point.cost`.
        best_weights: at that evaluation; empty before the first.
        seconds: spent before this process took it up.
        ended: whether it has diverged, or `LevelInputs.watch` has ended it.
        diverged: whether it has diverged.
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
    """The state between two iterations, on the CPU."""
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
    experience, remembered = lane.session.state()
    if experience or remembered:
        record["session"] = experience
        tensors |= _under("session", remembered)
    # Copied: what is on the CPU already is the lane's own memory.
    return TrainingState(
        record=record, tensors={n: value.detach().to("cpu", copy=True) for n, value in tensors.items()}
    )


def restore(state: TrainingState, lane: "Lane", watch: "Watch | None", metric: Metric) -> Course:
    """Put a lane and a watch into a state; the inverse of `capture`."""
    names, device, tensors = list(lane.weights()), lane.device, state.tensors

    def moved(prefix: str) -> Weights:
        """In the network's order, as if it had just been taken from it."""
        found = _below(prefix, tensors)
        return {name: found[name].to(device) for name in names if name in found}

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
