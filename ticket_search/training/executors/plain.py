"""An executor that trains one request at a time, each on its own network."""

from collections.abc import Callable

from ticket_search.training.determinism import reproducible
from ticket_search.training.lane import PlainLane, UpdatingLane
from ticket_search.training.loop import Training
from ticket_search.training.outcome import LevelOutputs
from ticket_search.training.request import TrainRequest


class PlainExecutor:
    """The reference implementation of `Executor`."""

    name = "plain"
    lanes = 1

    def __init__(self) -> None:
        self._held: list[TrainRequest] = []

    def submit(self, request: TrainRequest) -> None:
        """Put a request at the end of the queue."""
        self._held.append(request)

    def advance(self) -> list[tuple[TrainRequest, LevelOutputs]]:
        """Train the first request in the queue, and return it with its outputs."""
        request = self._held.pop(0)
        return [(request, train(request))]


def train(request: TrainRequest, make_lane: Callable[[TrainRequest], UpdatingLane] = PlainLane) -> LevelOutputs:
    """Perform the requested training run, resuming from its checkpoint if it has one, and return the outputs."""
    with reproducible(next(request.network.parameters()).device):
        update = make_lane(request)
        training = Training(request, update)
        while not training.is_done:
            training.after_update(update(training.iteration))
        return training.outputs()
