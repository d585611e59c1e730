"""What an executor is."""

from typing import Protocol, runtime_checkable

from ticket_search.training.outcome import LevelOutputs
from ticket_search.training.request import TrainRequest


@runtime_checkable
class Executor(Protocol):
    """Trains what is submitted to it. Who is trained beside whom, and in which order, changes no outputs."""

    name: str
    """As `TrainingSpec.executor` names it."""
    lanes: int
    """The most trainings that it holds at once."""

    def submit(self, request: TrainRequest) -> None:
        """Take a training; called while it holds fewer than `lanes`."""

    def advance(self) -> list[tuple[TrainRequest, LevelOutputs]]:
        """Train until at least one of the trainings that it holds is done; those that are, each given once.

        Called while it holds at least one. Raises what a training raises; it then holds none of them any more.
        """
