"""The protocol of executors."""

from typing import Protocol, runtime_checkable

from ticket_search.training.outcome import LevelOutputs
from ticket_search.training.request import TrainRequest


@runtime_checkable
class Executor(Protocol):
    """Trains submitted requests. Neither their order nor which ones are trained together may affect the outputs."""

    name: str
    """The name in `TrainingSpec.executor`."""
    lanes: int
    """The maximum number of trainings that the executor can hold at once."""

    def submit(self, request: TrainRequest) -> None:
        """Accept a training. Called only while fewer than `lanes` trainings are held."""

    def advance(self) -> list[tuple[TrainRequest, LevelOutputs]]:
        """Train until at least one training is done; return each finished training once.

        Called only while at least one is held. An error in any training is raised here and drops all held trainings.
        """
