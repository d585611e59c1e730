"""Run several trajectories in one process, and train their levels together on the executors that they request."""

import math
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from ticket_search.errors import user_exit_as_error
from ticket_search.lottery.level import Level
from ticket_search.lottery.steps import Steps, Wait
from ticket_search.training.executors.executor import Executor
from ticket_search.training.executors.registry import executor_for
from ticket_search.training.outcome import LevelOutputs
from ticket_search.training.request import TrainRequest

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Ended:
    """The end of a trajectory: the value that it returned, or the error that it raised."""

    value: Any = None
    error: Exception | None = None

    def result(self) -> Any:
        """Return the value, or raise the error.

        Raises:
            Exception: the trajectory's error.
        """
        if self.error is not None:
            raise self.error
        return self.value


@dataclass(eq=False)
class _Lane(Generic[K]):
    """A running trajectory.

    `ready_at` is the value of `time.monotonic` at which the trajectory may continue; infinity while it is training.
    """

    name: K
    steps: Steps[Any]
    ready_at: float = 0.0


@dataclass(eq=False)
class _Crew(Generic[K]):
    """An executor, the requests that it is training, and those waiting for a free lane."""

    executor: Executor
    waiting: deque[tuple[TrainRequest, _Lane[K]]] = field(default_factory=deque)
    held: dict[TrainRequest, _Lane[K]] = field(default_factory=dict)


class Lanes(Generic[K]):
    """Named trajectories that run side by side. Sharing executors affects their speed but not their results.

    Args:
        executor: creates an executor from its name.
    """

    def __init__(self, executor: Callable[[str], Executor] = executor_for) -> None:
        self._executor = executor
        self._lanes: dict[K, _Lane[K]] = {}
        self._crews: dict[str, _Crew[K]] = {}

    def __len__(self) -> int:
        """Return the number of trajectories that have not ended."""
        return len(self._lanes)

    def add(self, name: K, steps: Steps[Any]) -> None:
        """Add a trajectory. Its generator `steps` may already have been started."""
        self._lanes[name] = _Lane(name, steps)

    def remove(self, name: K) -> None:
        """Abandon a paused trajectory. A trajectory is paused if the last call of `advance` returned a level for it."""
        self._lanes.pop(name).steps.close()

    def close(self) -> None:
        """Abandon all trajectories and release their claims on the store."""
        for name in list(self._lanes):
            self.remove(name)
        self._crews.clear()

    def advance(self) -> list[tuple[K, Level | Ended]]:
        """Run all trajectories until at least one has finished a level or has ended.

        There must be at least one trajectory. A trajectory that has finished a level pauses until the next call.
        """
        while True:
            now = time.monotonic()
            ready = [lane for lane in self._lanes.values() if lane.ready_at <= now]
            steps = [(lane.name, self._step(lane, lane.steps.send, None)) for lane in ready]
            steps += self._train() if not any(outcome for _, outcome in steps) else []
            if outcomes := [(name, outcome) for name, outcome in steps if outcome is not None]:
                return outcomes

    def _train(self) -> list[tuple[K, Level | Ended | None]]:
        """Train until every busy executor has finished a request; if none is busy, sleep until a lane is ready."""
        busy = [crew for crew in self._crews.values() if crew.waiting or crew.held]
        if not busy:
            first = min(lane.ready_at for lane in self._lanes.values())
            time.sleep(max(0.0, first - time.monotonic()))
        return [outcome for crew in busy for outcome in self._train_with(crew)]

    def _train_with(self, crew: _Crew[K]) -> list[tuple[K, Level | Ended | None]]:
        try:
            while crew.waiting and len(crew.held) < crew.executor.lanes:
                request, lane = crew.waiting.popleft()
                crew.held[request] = lane
                crew.executor.submit(request)
            with user_exit_as_error():
                done = [(request, crew.held[request], outputs) for request, outputs in crew.executor.advance()]
        except Exception as error:  # the executor does not say which request failed, so all of them fail
            failed, crew.held = list(crew.held.values()), {}
            return [(lane.name, self._step(lane, lane.steps.throw, error)) for lane in failed]
        for request, _, _ in done:
            crew.held.pop(request, None)
        trained = [self._trained(lane, outputs) for _, lane, outputs in done]
        for lane in self._lanes.values():
            if math.isfinite(lane.ready_at):  # the lane is waiting for a level that may just have been trained
                lane.ready_at = 0.0
        return trained

    def _trained(self, lane: _Lane[K], outputs: LevelOutputs) -> tuple[K, Level | Ended | None]:
        return lane.name, self._step(lane, lane.steps.send, outputs)

    def _step(self, lane: _Lane[K], resume: Callable[[Any], object], sent: Any) -> Level | Ended | None:
        """Run a trajectory to its next step. If the step is a level or the end, return it; otherwise return None."""
        lane.ready_at = 0.0
        try:
            with user_exit_as_error():
                step = resume(sent)
        except StopIteration as stop:
            return self._ended(lane, Ended(value=stop.value))
        except Exception as error:
            return self._ended(lane, Ended(error=error))
        if isinstance(step, Level):
            return step
        if isinstance(step, Wait):
            lane.ready_at = time.monotonic() + step.seconds
        elif isinstance(step, TrainRequest):
            return self._enqueue(lane, step)
        return None

    def _enqueue(self, lane: _Lane[K], request: TrainRequest) -> Level | Ended | None:
        lane.ready_at = math.inf
        try:
            if request.executor not in self._crews:
                self._crews[request.executor] = _Crew(self._executor(request.executor))
        except Exception as error:  # if a user's executor cannot be created, only this trajectory fails
            return self._step(lane, lane.steps.throw, error)
        self._crews[request.executor].waiting.append((request, lane))
        return None

    def _ended(self, lane: _Lane[K], ended: Ended) -> Ended:
        del self._lanes[lane.name]
        return ended


def run_alone(steps: Steps[Any], executor: Callable[[str], Executor] = executor_for) -> Iterator[Level]:
    """Run one trajectory on executors that no other trajectory uses, and yield its levels."""
    lanes: Lanes[str] = Lanes(executor)
    lanes.add("", steps)
    try:
        while True:
            for _, outcome in lanes.advance():
                if isinstance(outcome, Ended):
                    outcome.result()
                    return
                yield outcome
    finally:
        lanes.close()


def finish(steps: Steps[T]) -> T:
    """Run a generator of steps to its end, and return its value."""
    lanes: Lanes[str] = Lanes()
    lanes.add("", steps)
    try:
        while True:
            for _, outcome in lanes.advance():
                if isinstance(outcome, Ended):
                    value: T = outcome.result()
                    return value
    finally:
        lanes.close()
