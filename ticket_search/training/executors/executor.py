"""The protocol of executors."""

from typing import Protocol, runtime_checkable

from ticket_search.training.outcome import LevelOutputs
from ticket_search.training.request import TrainRequest


@runtime_checkable
class Executor(Protocol):
    """Trains submitted requests. Outputs must not depend on the order of requests or on which train together."""

    name: str
    """The name in `TrainingSpec.executor`."""
    lanes: int
    """The maximum number of requests that the executor can train at once."""

    def submit(self, request: TrainRequest) -> None:
        """Accept a request. This is called only while fewer than `lanes` requests are in progress."""

    def advance(self) -> list[tuple[TrainRequest, LevelOutputs]]:
        """Train until at least one request is finished; return each finished request once, with its outputs.

        This is called only while a request is in progress. An error in any request is raised here, and all requests in
        progress are dropped.
        """
