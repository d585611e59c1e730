"""Several networks of one architecture, whose updates are made together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.functional import cross_entropy

from ticket_search.config.trajectory import OptimizerSpec, Precision
from ticket_search.models import aliases
from ticket_search.pruning.masks import Mask
from ticket_search.tasks.precision import arithmetic
from ticket_search.training.fully_connected import fully_connected_layers
from ticket_search.training.outcome import Weights

_BETAS, _EPS = (0.9, 0.999), 1e-8

#: Maps the stacked parameters, buffers and inputs ``[lanes, b, ...]`` to the outputs ``[lanes, b, classes]``.
Forward = Callable[[Mapping[str, Tensor], Mapping[str, Tensor], Tensor], Tensor]


@dataclass(eq=False)
class Member:
    """The state of one network outside a stack, or its rows inside one; every tensor is ``[values]``.

    Attributes:
        values: all parameters.
        buffers: all buffers by name, each in its own shape.
        mask: 1 where a parameter is trained, 0 where it is pruned or needs no gradient.
        frozen: the constant values of parameters that are not trained, and 0 elsewhere.
        first: the running mean of the gradients, or the velocity of SGD.
        second: the running mean of the squared gradients.
        step: the number of updates made.
        optimizer: the optimizer's settings.
    """

    values: Tensor
    buffers: dict[str, Tensor]
    mask: Tensor
    frozen: Tensor
    first: Tensor
    second: Tensor
    step: int
    optimizer: OptimizerSpec


class Layout:
    """The position of each parameter of a network in a flat vector.

    Args:
        network: the network.

    Attributes:
        shapes: the shape of each parameter, by its first name.
        aliases: the first names of tied parameters and buffers, by their other names.
    """

    def __init__(self, network: nn.Module) -> None:
        named = dict(network.named_parameters())
        self.shapes = {name: parameter.shape for name, parameter in named.items()}
        self._sizes = [parameter.numel() for parameter in named.values()]
        self.aliases = aliases(network)

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Return views of the parameters in ``[..., values]``, by name."""
        parts, lead = torch.split(flat, self._sizes, dim=-1), flat.shape[:-1]
        shapes = self.shapes.items()
        return {name: part.view(*lead, *shape) for part, (name, shape) in zip(parts, shapes, strict=True)}

    def flatten(self, parameters: Mapping[str, Tensor], lanes: int = 0) -> Tensor:
        """Return the parameters as one vector, or as one row per lane if they are stacked."""
        return torch.cat([parameters[name].flatten(lanes) for name in self.shapes], dim=-1)


def make_member(
    network: nn.Module, layout: Layout, weights: Mapping[str, Tensor], mask: Mask, spec: OptimizerSpec
) -> Member:
    """Return a network's state before its first update.

    Args:
        network: the network, on the device.
        layout: the network's layout.
        weights: the initial parameters and buffers.
        mask: the mask; pruned weights keep their values in `weights`.
        spec: the optimizer's settings.
    """
    device = next(network.parameters()).device
    initial = {name: weights[name].to(device) for name in layout.shapes}
    trained = {name: torch.full_like(p, float(p.requires_grad)) for name, p in network.named_parameters()}
    kept = {name: mask[name].to(device).float() if name in mask else ones for name, ones in trained.items()}
    values, keep = layout.flatten(initial).clone(), layout.flatten(kept)
    return Member(
        values=values,
        # Buffers that are not in the state dict have the values that the network's code gave them.
        buffers={name: weights.get(name, own).to(device).clone() for name, own in network.named_buffers()},
        mask=keep,
        frozen=values * (1 - keep),
        first=torch.zeros_like(values),
        second=torch.zeros_like(values),
        step=0,
        optimizer=spec,
    )


class Stack:
    """The stacked state of several networks.

    Args:
        network: a network of the architecture, on the device.
        members: the networks' states, which are copied.
        precision: the precision of forward passes.
    """

    def __init__(self, network: nn.Module, members: Sequence[Member], precision: Precision) -> None:
        self.layout, self._precision = Layout(network), precision
        self._forward = stacked_forward(network)
        self._values, self._mask, self._frozen, self._first, self._second = (
            torch.stack([getattr(member, name) for member in members])
            for name in ("values", "mask", "frozen", "first", "second")
        )
        names = members[0].buffers
        self._buffers = {name: torch.stack([member.buffers[name] for member in members]) for name in names}
        self._parameters = {n: v.detach().requires_grad_() for n, v in self.layout.views(self._values).items()}
        self._steps = [member.step for member in members]
        self._optimizers = [member.optimizer for member in members]
        self._is_adam = members[0].optimizer.name == "adam"
        self._decay = self._column([member.optimizer.weight_decay for member in members])
        self._momentum = self._column([member.optimizer.momentum for member in members])

    def member(self, lane: int) -> Member:
        """Return the state of one lane. Its tensors share memory with the stack."""
        return Member(
            values=self._values[lane],
            buffers={name: value[lane] for name, value in self._buffers.items()},
            mask=self._mask[lane],
            frozen=self._frozen[lane],
            first=self._first[lane],
            second=self._second[lane],
            step=self._steps[lane],
            optimizer=self._optimizers[lane],
        )

    def update(self, images: Tensor, labels: Tensor, rates: Sequence[float]) -> Tensor:
        """Make one update of every network, and return each network's loss, ``[lanes]``, in nats.

        Args:
            images: ``[lanes, b, c, h, w]``.
            labels: ``[lanes, b]``.
            rates: the learning rate of each lane.
        """
        with arithmetic(self._precision, images.device):
            logits = self._forward(self._parameters, self._buffers, images)
        per_image = cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none")
        losses = per_image.view(labels.shape).mean(1)
        # Of the sum, not of the mean over lanes, so that the gradients do not depend on the number of lanes.
        gradients = torch.autograd.grad(losses.sum(), list(self._parameters.values()))
        with torch.no_grad():
            self._apply(self.layout.flatten(dict(zip(self._parameters, gradients, strict=True)), lanes=1), rates)
        return losses.detach()

    def _apply(self, gradients: Tensor, rates: Sequence[float]) -> None:
        # Operations that round only once: with a fused multiply-add, the bits of an element could depend on its place
        # in the tensor, and therefore on its lane.
        values, first, second = self._values, self._first, self._second
        self._steps = [step + 1 for step in self._steps]
        gradients.add_(values * self._decay)
        if self._is_adam:
            first.mul_(_BETAS[0]).add_(gradients * (1 - _BETAS[0]))
            second.mul_(_BETAS[1]).add_(gradients.square().mul_(1 - _BETAS[1]))
            sizes = self._column([rate / (1 - _BETAS[0] ** t) for rate, t in zip(rates, self._steps, strict=True)])
            roots = self._column([(1 - _BETAS[1] ** t) ** -0.5 for t in self._steps])
            values.sub_(first.div(second.sqrt().mul_(roots).add_(_EPS)).mul_(sizes))
        else:
            first.mul_(self._momentum).add_(gradients)
            values.sub_(first * self._column(rates))
        values.mul_(self._mask).add_(self._frozen)

    def _column(self, numbers: Sequence[float]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.float32).to(self._values.device).unsqueeze(1)


def stacked_forward(network: nn.Module) -> Forward:
    """Return the forward pass of several networks of one architecture."""
    layers = fully_connected_layers(network)
    if layers is not None:
        return _fully_connected([name for name, _ in layers])

    def run(parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], images: Tensor) -> Tensor:
        return functional_call(network, ({**parameters}, {**buffers}), (images,))  # type: ignore[no-any-return]

    run_all = vmap(run)

    def forward(parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], images: Tensor) -> Tensor:
        network.train()  # the network may also be one that a lane is scored with, which switches its mode
        return run_all(parameters, buffers, images)

    return forward


def _fully_connected(names: Sequence[str]) -> Forward:
    """Return the forward pass of fully connected networks as batched matrix products, which are faster than `vmap`."""

    def forward(parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], images: Tensor) -> Tensor:
        x = images.flatten(2)
        for name in names:
            weight, bias = parameters[f"{name}.weight"], parameters[f"{name}.bias"]
            x = torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))
            x = x if name == names[-1] else x.relu_()
        return x

    return forward


def weights_of(member: Member, layout: Layout, names: Sequence[str]) -> Weights:
    """Return the parameters and buffers of a network by name.

    Args:
        member: the network's state.
        layout: the network's layout.
        names: the names, in the order of the network's state dict.
    """
    own = layout.views(member.values) | member.buffers
    return {name: own[layout.aliases.get(name, name)] for name in names}
