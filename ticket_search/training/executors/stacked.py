"""An executor that trains several levels of one architecture as one program, each in its own lane."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ticket_search.config.user_error import one_line
from ticket_search.data.dataset import Dataset
from ticket_search.errors import SpecError
from ticket_search.tasks.images import ImageTask
from ticket_search.training.determinism import reproducible
from ticket_search.training.fully_connected import fully_connected_layers
from ticket_search.training.loop import Training
from ticket_search.training.outcome import LevelOutputs
from ticket_search.training.request import TrainRequest
from ticket_search.training.stacked.lane import StackedLane
from ticket_search.training.stacked.stack import Member, Stack, stacked_forward

#: On a GPU, a stack has a multiple of this many lanes, because the algorithm of a batched matrix product, and thus the
#: bits of its result, may depend on the number of matrices. Lanes without a level do work that is thrown away.
BLOCK = 16


@dataclass(eq=False)
class _Held:
    """A level in training."""

    lane: StackedLane
    training: Training


@dataclass(eq=False)
class _Group:
    """The levels that can share a stack, and the stack of those that were in it last."""

    held: list[_Held] = field(default_factory=list)
    stacked: list[_Held] = field(default_factory=list)
    stack: Stack | None = None

    def finished(self) -> list[_Held]:
        """Remove and return the levels that have made their last update."""
        done = [held for held in self.held if held.training.is_done]
        self.held = [held for held in self.held if held not in done]
        if not self.held:
            self.stack, self.stacked = None, []  # free the memory
        return done

    def update(self) -> None:
        """Make one update of every level."""
        first = self.held[0].lane
        if self.stack is None or self.stacked != self.held:
            self.stack, self.stacked = self._restacked(), list(self.held)
        lanes = [held.lane for held in self.held]
        iterations = [held.training.iteration + held.lane.request.level.shift for held in self.held]
        images, labels = _batches(first.task.data, lanes, iterations)
        rates = [lane.rate(iteration) for lane, iteration in zip(lanes, iterations, strict=True)]
        spare = _width(len(lanes), first.device) - len(lanes)
        if spare:
            images, labels = (torch.cat([x, x[:1].expand(spare, *x.shape[1:])]) for x in (images, labels))
        losses = self.stack.update(images, labels, rates + [0.0] * spare)
        for number, held in enumerate(self.held):
            held.lane.member.step += 1
            held.training.after_update(losses[number])

    def _restacked(self) -> Stack:
        """Return a stack of the levels; spare lanes get copies of a level whose results are thrown away."""
        first = self.held[0].lane
        members: list[Member] = [held.lane.member for held in self.held]
        if spare := _width(len(members), first.device) - len(members):
            members += [StackedLane(first.request, first.task).member] * spare
        stack = Stack(first.request.network, members, first.request.training.precision)
        for number, held in enumerate(self.held):
            held.lane.member = stack.member(number)
        return stack


class StackedExecutor:
    """Trains requests together if they have the same architecture, data, batch size and optimizer; see `Executor`.

    A level's bits do not depend on the other levels or on its lane. On the CPU this relies on a property of torch's
    batched matrix product, which tests check; on a GPU it relies on the number of lanes, which is rounded up to a
    multiple of `BLOCK`.
    """

    name = "stacked"
    lanes = 1024

    def __init__(self) -> None:
        self._groups: dict[Hashable, _Group] = {}

    def submit(self, request: TrainRequest) -> None:
        """Put a request into a free lane."""
        task = request.task
        if type(task) is not ImageTask:  # a subclass may have another loss
            raise SpecError("training.executor: 'stacked' trains classifiers of images only; give executor 'plain'")
        with reproducible(task.device):
            lane = StackedLane(request, task)
            self._groups.setdefault(_kind(request, task), _Group()).held.append(_Held(lane, Training(request, lane)))

    def advance(self) -> list[tuple[TrainRequest, LevelOutputs]]:
        """Train all requests, group by group, until at least one is finished."""
        device = next(group.held[0].lane.device for group in self._groups.values() if group.held)
        try:
            with reproducible(device):
                while not (done := [held for group in self._groups.values() for held in group.finished()]):
                    self.update()
                return [(held.lane.request, held.training.outputs()) for held in done]
        except BaseException:
            self._groups.clear()
            raise

    def update(self) -> None:
        """Make one update of every request."""
        for group in self._groups.values():
            if group.held:
                group.update()


def _kind(request: TrainRequest, task: ImageTask) -> Hashable:
    """Return what the levels of a stack have in common."""
    training = request.training
    names = tuple((name, tuple(value.shape)) for name, value in request.network.state_dict().items())
    return (
        id(task.data),
        request.model,
        names,
        training.batch_size,
        training.optimizer.name,
        training.precision,
    )


def _width(lanes: int, device: torch.device) -> int:
    return lanes if device.type == "cpu" else -(-lanes // BLOCK) * BLOCK


def _batches(data: Dataset, lanes: Sequence[StackedLane], iterations: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the images ``[lanes, b, c, h, w]`` and labels ``[lanes, b]`` of each lane's iteration."""
    if data.augment.crop or data.augment.flip:
        batches = [lane.images.batch(iteration) for lane, iteration in zip(lanes, iterations, strict=True)]
        return torch.stack([images for images, _ in batches]), torch.stack([labels for _, labels in batches])
    # One gather for all lanes, because on a GPU each operation costs a launch.
    rows = torch.stack([lane.images.rows(iteration) for lane, iteration in zip(lanes, iterations, strict=True)])
    gathered = data.train.images.index_select(0, rows.flatten()).float().mul_(data.scale).add_(data.shift)
    return gathered.view(*rows.shape, *data.image_shape), data.train.labels[rows]


def check_network(network: nn.Module, model: str, on_cpu: bool, example: Tensor | None) -> None:
    """Check that `StackedExecutor` can train a network.

    Args:
        network: the network, on the CPU.
        model: the model's name in the search space.
        on_cpu: whether the network will be trained on the CPU.
        example: images for running the network once, ``[b, c, h, w]``; None if the task has no images.

    Raises:
        SpecError: the network cannot be stacked.
    """
    if example is None:
        raise SpecError("training.executor: 'stacked' trains classifiers of images only; give executor 'plain'")
    if fully_connected_layers(network) is not None:
        return
    if on_cpu:
        raise SpecError(
            "training.executor: 'stacked' trains only fully connected ReLU networks on the CPU, because stacking makes "
            f"others slower there; model {model!r} is not one; give executor 'plain' or 'auto'"
        )
    if odd := [name for name, p in network.named_parameters() if p.dtype != torch.float32]:
        raise SpecError(
            f"training.executor: 'stacked' needs float32 parameters, but {odd[0]!r} of model {model!r} is "
            f"{network.get_parameter(odd[0]).dtype}; give executor 'plain' or 'auto'"
        )
    forward = stacked_forward(network)
    parameters, buffers = (
        {name: value.detach().expand(2, *value.shape).clone() for name, value in named}
        for named in (network.named_parameters(), network.named_buffers())
    )
    try:
        forward(parameters, buffers, example.expand(2, *example.shape))
    except Exception as error:
        if "randomness" in str(error):
            raise SpecError(
                f"training.executor: model {model!r} draws random numbers in its forward pass, as dropout does, which "
                "'stacked' does not support; give executor 'plain' or 'auto'"
            ) from error
        raise SpecError(
            f"training.executor: model {model!r} does not run under torch.func.vmap, which 'stacked' uses: "
            f"{one_line(error)}; give executor 'plain' or 'auto'"
        ) from error
