"""Where one training goes on: what an executor's way to train has to offer, and the plain one."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from ticket_search.config.identity import derive_seed
from ticket_search.tasks.task import Score, Session, Split
from ticket_search.training.determinism import seed_generators
from ticket_search.training.optimizer import load_optimizer_state, make_optimizer, optimizer_state
from ticket_search.training.outcome import Weights
from ticket_search.training.request import TrainRequest
from ticket_search.training.schedule import learning_rate


class Lane(Protocol):
    """One level being trained: the values that an executor holds for it, apart from those of others."""

    session: Session
    """What it gets from the task."""
    device: torch.device

    def weights(self) -> Weights:
        """Every parameter and buffer by name: the lane's own memory, not to be changed."""

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take other values for all of them."""

    def optimizer_state(self) -> Weights:
        """What the optimizer remembers: ``<place of the parameter>/<name>`` -> tensor."""

    def load_optimizer_state(self, tensors: Weights) -> None:
        """Make the optimizer remember what `optimizer_state` gave."""

    def score(self, split: Split) -> Score:
        """Measure the weights as they are."""


class PlainLane:
    """A network of its own. Called, it makes one update: the only ``optimizer.step``, the mask applied right after it.

    Args:
        request: whose network's values are overwritten with those that the training starts from.
    """

    def __init__(self, request: TrainRequest) -> None:
        level, self._network, self._training = request.level, request.network, request.training
        self.load(level.weights)
        parameters = dict(self._network.named_parameters())
        self.device = next(iter(parameters.values())).device
        self._shift = level.shift
        self._task = request.task
        self.session = request.task.session(level.seed, request.training, level.start + level.shift)
        self._noise = derive_seed(level.seed, "noise")
        self._masked = [parameters[name].detach() for name in level.mask]
        self._masks = [kept.to(parameters[name]) for name, kept in level.mask.items()]
        frozen = [torch.where(kept.cpu(), 0.0, level.weights[name].cpu()) for name, kept in level.mask.items()]
        self._frozen = [values.to(self.device) for values in frozen] if any(bool(v.any()) for v in frozen) else []
        self._optimizer = make_optimizer(self._network, request.training.optimizer)
        # A tied weight stands in the state under each of its names, of which the mask knows one.
        self._apply_mask()

    def __call__(self, iteration: int) -> Tensor:
        """Make the update that follows `iteration` updates; returns the batch's loss, still on the device."""
        iteration += self._shift
        # Dropout draws from the device's generator: seeded here, a training taken up midway draws the same.
        seed_generators(self.device, (self._noise + iteration) % 2**63)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self._training, iteration)
        self._network.train()
        self._optimizer.zero_grad(set_to_none=True)
        loss = self.session.loss(self._network, iteration)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._apply_mask()
        return loss.detach()

    def weights(self) -> Weights:
        """Those of the network."""
        return {name: value.detach() for name, value in self._network.state_dict().items()}

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Copied into the network."""
        self._network.load_state_dict(dict(weights), strict=True)

    def optimizer_state(self) -> Weights:
        """Of torch's optimizer."""
        return optimizer_state(self._optimizer)

    def load_optimizer_state(self, tensors: Weights) -> None:
        """Into torch's optimizer."""
        load_optimizer_state(self._optimizer, tensors)

    def score(self, split: Split) -> Score:
        """By the task."""
        return self._task.score(self._network, split, self._training.precision)

    def _apply_mask(self) -> None:
        if self._masks:
            torch._foreach_mul_(self._masked, self._masks)
        if self._frozen:
            torch._foreach_add_(self._masked, self._frozen)
