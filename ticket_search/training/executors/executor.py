"""The protocol of executors."""

from typing import Protocol, runtime_checkable

from ticket_search.training.outcome import LevelOutputs
from ticket_search.training.request import TrainRequest


@runtime_checkable
class Executor(Protocol):
    """Trains submitted requests. Their order, and which ones are trained together, must not change the outputs."""

    name: str
    """The name in `TrainingSpec.executor`."""
    lanes: int
    """The most trainings that it can hold at once."""

    def submit(self, request: TrainRequest) -> None:
        """Accept a training. Called only while fewer than `lanes` are held."""

    def advance(self) -> list[tuple[TrainRequest, LevelOutputs]]:
        """Train until at least one training is done; return each finished training once.

        Called only while at least one is held. If a training raises, the error is raised here and all are dropped.
        """
