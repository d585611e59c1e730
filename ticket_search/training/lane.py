"""The `Lane` protocol and `PlainLane`. A lane trains one level; a plain lane does so with its own network."""

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
    """The weights and optimizer state of one level in training, separate from those of other lanes."""

    session: Session
    """The task's session for this training run."""
    device: torch.device

    def weights(self) -> Weights:
        """Return every parameter and buffer by name. The tensors share memory with the lane; do not modify them."""

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Replace the values of all parameters and buffers."""

    def optimizer_state(self) -> Weights:
        """Return the optimizer's state, by names of the lane's own choice."""

    def load_optimizer_state(self, tensors: Weights) -> None:
        """Restore a state that `optimizer_state` returned."""

    def score(self, split: Split) -> Score:
        """Score the current weights on a split."""


class UpdatingLane(Lane, Protocol):
    """A lane that makes its own updates."""

    def __call__(self, iteration: int) -> Tensor:
        """Make update number `iteration`, counted from 0, and return the batch's loss, a scalar on the device."""


class PlainLane:
    """A lane with its own network. Calling the lane makes one optimizer update and then applies the mask.

    Args:
        request: the training request; its network's weights are overwritten with the initial weights.
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
        # The constant values of pruned weights. `_apply_mask` adds them; the list is empty if all of them are zero.
        frozen = [torch.where(kept.cpu(), 0.0, level.weights[name].cpu()) for name, kept in level.mask.items()]
        self._frozen = [values.to(self.device) for values in frozen] if any(bool(v.any()) for v in frozen) else []
        self._optimizer = make_optimizer(self._network, request.training.optimizer)
        # A tied weight has several names in the state dict but only one in the mask. `load` may therefore have copied
        # unmasked values into it under another name.
        self._apply_mask()

    def __call__(self, iteration: int) -> Tensor:
        """Make update number `iteration`, counted from 0, and return the batch's loss, a scalar on the device."""
        iteration += self._shift
        # Dropout uses the device's generator. Seeding it before every update makes a resumed run draw the same numbers.
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
        """Return every parameter and buffer of the network."""
        return {name: value.detach() for name, value in self._network.state_dict().items()}

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Copy the values into the network."""
        self._network.load_state_dict(dict(weights), strict=True)

    def optimizer_state(self) -> Weights:
        """Return the torch optimizer's state."""
        return optimizer_state(self._optimizer)

    def load_optimizer_state(self, tensors: Weights) -> None:
        """Load a state into the torch optimizer."""
        load_optimizer_state(self._optimizer, tensors)

    def score(self, split: Split) -> Score:
        """Score the network with the task."""
        return self._task.score(self._network, split, self._training.precision)

    def _apply_mask(self) -> None:
        if self._masks:
            torch._foreach_mul_(self._masked, self._masks)
        if self._frozen:
            torch._foreach_add_(self._masked, self._frozen)
