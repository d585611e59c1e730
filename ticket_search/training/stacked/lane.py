"""The lane of a stack: one level among those that are trained together."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ticket_search.tasks.images import ImageSession, ImageTask
from ticket_search.tasks.task import Score, Session, Split
from ticket_search.training.outcome import Weights
from ticket_search.training.request import TrainRequest
from ticket_search.training.schedule import learning_rate
from ticket_search.training.stacked.stack import Layout, Member, make_member, weights_of


class StackedLane:
    """A level in a stack; see `training.lane.Lane`.

    Args:
        request: the training request. Its network is used for scoring.
        task: the request's task.

    Attributes:
        request: the training request.
        task: the request's task.
        images: the session as one of images.
        member: the state of the level. Its tensors are rows of the stack while the level is in one.
    """

    def __init__(self, request: TrainRequest, task: ImageTask) -> None:
        level, network = request.level, request.network
        self.request, self.task = request, task
        self.device = next(network.parameters()).device
        self.images: ImageSession = task.session(level.seed, request.training, level.start + level.shift)
        self.session: Session = self.images
        self._layout = Layout(network)
        self._names = list(network.state_dict())
        self.member: Member = make_member(network, self._layout, level.weights, level.mask, request.training.optimizer)

    def rate(self, iteration: int) -> float:
        """Return the learning rate of an iteration, which counts the level's shift."""
        return learning_rate(self.request.training, iteration)

    def weights(self) -> Weights:
        """Return every parameter and buffer by name."""
        return weights_of(self.member, self._layout, self._names)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Replace the values of all parameters and buffers, in the stack as well."""
        for name, value in self.weights().items():
            value.copy_(weights[name])

    def optimizer_state(self) -> Weights:
        """Return the optimizer's state."""
        member = self.member
        return {"step": torch.tensor(member.step), "first": member.first, "second": member.second}

    def load_optimizer_state(self, tensors: Weights) -> None:
        """Restore the optimizer's state."""
        self.member.step = int(tensors["step"])
        self.member.first.copy_(tensors["first"])
        self.member.second.copy_(tensors["second"])

    def score(self, split: Split) -> Score:
        """Score the level's network with the task."""
        self.request.network.load_state_dict(self.weights())
        return self.task.score(self.request.network, split, self.request.training.precision)
