"""A user's executor that trains up to two levels alternately, one update at a time."""

from ticket_search.training.determinism import reproducible
from ticket_search.training.lane import PlainLane
from ticket_search.training.loop import Training


class Pair:
    name = "pair_executor:Pair"
    lanes = 2

    def __init__(self):
        self.together = []  # the keys of the levels in training at the start of each call to `advance`
        self._held = []

    def submit(self, request):
        assert len(self._held) < 2
        with reproducible(request.task.device):
            lane = PlainLane(request)
            self._held.append((request, lane, Training(request, lane)))

    def advance(self):
        self.together.append([request.key for request, _, _ in self._held])
        done = []
        try:
            while not done:
                for held in self._held:
                    _, update, training = held
                    with reproducible(update.device):
                        training.after_update(update(training.iteration))
                    if training.is_done:
                        done.append(held)
        except BaseException:
            self._held.clear()
            raise
        self._held = [held for held in self._held if held not in done]
        return [(request, training.outputs()) for request, _, training in done]
