"""A lane that trains any network with torch, after replacing its fully connected layers with sparse ones."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from ticket_search.errors import SpecError
from ticket_search.pruning.masks import Mask
from ticket_search.tasks.task import Score, Session, Split
from ticket_search.training.fully_connected import replaceable
from ticket_search.training.lane import PlainLane
from ticket_search.training.outcome import Weights
from ticket_search.training.request import TrainRequest
from ticket_search.training.sparse import kernels
from ticket_search.training.sparse.kernels import WIDTH
from ticket_search.training.sparse.layers import NO_ACTIVATION, KeptWeights, is_sparse


class ModuleLane:
    """A lane whose fully connected layers are sparse, and whose other layers are those of a `PlainLane`.

    Args:
        request: the training request.
    """

    def __init__(self, request: TrainRequest) -> None:
        self._names = list(request.network.state_dict())
        network, self._kept = with_sparse_layers(request.network, request.level.mask)
        dense = {name: kept for name, kept in request.level.mask.items() if name not in self._kept}
        level = replace(request.level, weights=self._sparse(request.level.weights), mask=dense)
        self._inner = PlainLane(replace(request, network=network, level=level))
        self.session: Session = self._inner.session
        self.device = self._inner.device

    def __call__(self, iteration: int) -> Tensor:
        """Make update number `iteration`, counted from 0, and return the batch's loss, a scalar."""
        return self._inner(iteration)

    def weights(self) -> Weights:
        """Return every parameter and buffer by name; the pruned weights are 0."""
        inner = self._inner.weights()
        return {n: self._kept[n].scatter(inner[n]) if n in self._kept else inner[n] for n in self._names}

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Replace the kept weights and all other parameters and buffers."""
        self._inner.load(self._sparse(weights))

    def optimizer_state(self) -> Weights:
        """Return the torch optimizer's state, which covers the kept weights of sparse layers only."""
        return self._inner.optimizer_state()

    def load_optimizer_state(self, tensors: Weights) -> None:
        """Load a state into the torch optimizer."""
        self._inner.load_optimizer_state(tensors)

    def score(self, split: Split) -> Score:
        """Score the network with the task."""
        return self._inner.score(split)

    def _sparse(self, weights: Mapping[str, Tensor]) -> Weights:
        return {n: self._kept[n].gather(w.cpu()) if n in self._kept else w for n, w in weights.items()}


def with_sparse_layers(network: nn.Module, mask: Mask) -> tuple[nn.Module, dict[str, KeptWeights]]:
    """Return a copy of a network whose fully connected layers are sparse, and the positions of their kept weights.

    Layers that share a parameter with another layer, or that are denser than `layers.DENSE_ABOVE`, stay dense.

    Args:
        network: the network.
        mask: the mask; the copy's sparse layers have their kept weights, ``[kept]``, in place of their weight.
    """
    network, kept_weights = copy.deepcopy(network), {}
    for name in sparse_candidates(network):
        kept = mask.get(f"{name}.weight")
        if kept is None or not is_sparse(kept):
            continue
        layer, kept_weights[f"{name}.weight"] = network.get_submodule(name), KeptWeights(kept.cpu())
        network.set_submodule(name, SparseLinear(layer, kept_weights[f"{name}.weight"], name))
    return network, kept_weights


def sparse_candidates(network: nn.Module) -> list[str]:
    """Return the names of the fully connected layers that can be sparse."""
    owners: dict[int, int] = {}
    for _, module in network.named_modules(remove_duplicate=False):
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return [
        name
        for name, module in network.named_modules()
        if name and replaceable(module) and all(owners[id(p)] == 1 for p in module.parameters())
    ]


class SparseLinear(nn.Module):
    """A fully connected layer that stores only its kept weights, ``[kept]``, which its state dict calls ``weight``.

    Args:
        layer: the layer that this one replaces.
        kept: the positions of the kept weights.
        name: the layer's name in the network.
    """

    def __init__(self, layer: nn.Module, kept: KeptWeights, name: str) -> None:
        super().__init__()
        self._kept, self._name = kept, name
        # Not through `register_parameter`, which would first read the property `weight`.
        self._parameters["weight"] = nn.Parameter(kept.gather(layer.get_parameter("weight").detach()))
        self.bias = layer.get_parameter("bias")

    @property
    def weight(self) -> NoReturn:
        """The dense weight, which does not exist.

        Raises:
            SpecError: always.
        """
        raise SpecError(
            f"training.executor: the network reads the weight of its layer {self._name!r} directly, which executor "
            "'sparse' does not store as a matrix; give executor 'plain'"
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., inputs]`` to ``[..., outputs]``."""
        values = self._parameters["weight"]
        out: Tensor = _Product.apply(x.reshape(-1, self._kept.shape[1]), values, self.bias, self._kept)
        return out.view(*x.shape[:-1], self._kept.shape[0])


class _Product(torch.autograd.Function):
    """The outputs of a sparse fully connected layer, and their gradients."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, values: Tensor, bias: Tensor, kept: KeptWeights) -> Tensor:
        columns = _transposed(x)
        out = columns.new_zeros(kept.shape[0], columns.shape[1])
        weights, biases = values.detach().numpy(), bias.detach().numpy()
        kernels.forward(kept.rows, kept.columns, weights, biases, columns.numpy(), out.numpy(), NO_ACTIVATION)
        ctx.saved = columns, values.detach(), kept, ctx.needs_input_grad[0]  # type: ignore[attr-defined]
        return out[:, : len(x)].t().contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        columns, values, kept, wants_input = ctx.saved
        slopes = _transposed(slope)
        gradients, x_slope = torch.empty_like(values), None
        kernels.weight_gradients(kept.rows, kept.columns, columns.numpy(), slopes.numpy(), gradients.numpy())
        if wants_input:
            inputs = torch.empty_like(columns)
            kernels.input_gradients(kept.rows, kept.columns, values.numpy(), slopes.numpy(), inputs.numpy())
            x_slope = inputs[:, : len(slope)].t()
        return x_slope, gradients, slope.sum(0), None


def _transposed(x: Tensor) -> Tensor:
    """Return ``[n, units]`` as ``[units, b]``, where `b` is `n` padded with zeros to a multiple of `WIDTH`."""
    columns = x.new_zeros(x.shape[1], -(-len(x) // WIDTH) * WIDTH)
    columns[:, : len(x)].copy_(x.detach().t())
    return columns
