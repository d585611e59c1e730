"""The protocol of executors."""

from typing import Protocol, runtime_checkable

from ticket_search.training.outcome import LevelOutputs
from ticket_search.training.request import TrainRequest


@runtime_checkable
class Executor(Protocol):
    """An object that trains levels on request.

    The outputs for a request must not depend on the order of requests, or on which requests are trained at the same
    time.
    """

    name: str
    """The name in `TrainingSpec.executor`."""
    lanes: int
    """The maximum number of requests that the executor can train at once."""

    def submit(self, request: TrainRequest) -> None:
        """Accept a request for training. This is called only while fewer than `lanes` requests are in progress."""

    def advance(self) -> list[tuple[TrainRequest, LevelOutputs]]:
        """Train until at least one request is finished, and return the newly finished requests with their outputs.

        This is called only while a request is in progress. If the training of any request fails, raise the error and
        drop all requests in progress.
        """
