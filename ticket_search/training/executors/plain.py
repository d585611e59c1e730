"""An executor that trains one request at a time, each with its own network."""

from ticket_search.training.determinism import reproducible
from ticket_search.training.lane import PlainLane
from ticket_search.training.loop import Training
from ticket_search.training.outcome import LevelOutputs
from ticket_search.training.request import TrainRequest


class PlainExecutor:
    """The reference `Executor`, with which others are compared."""

    name = "plain"
    lanes = 1

    def __init__(self) -> None:
        self._held: list[TrainRequest] = []

    def submit(self, request: TrainRequest) -> None:
        """Accept a request."""
        self._held.append(request)

    def advance(self) -> list[tuple[TrainRequest, LevelOutputs]]:
        """Train the request that was submitted first, and return it with its outputs."""
        request = self._held.pop(0)
        return [(request, train(request))]


def train(request: TrainRequest) -> LevelOutputs:
    """Train a request to its end, from its checkpoint if there is one, and return the outputs."""
    with reproducible(next(request.network.parameters()).device):
        update = PlainLane(request)
        training = Training(request, update)
        while not training.is_done:
            training.after_update(update(training.iteration))
        return training.outputs()
