"""Fully connected layers with a hand-written backward pass, stored either sparse or dense.

Activations are float32 ``[units, b]``; see `kernels`. Layers read their parameters from buffers that they are given,
and write gradients into others of the same layout, so that one call can update the parameters of all layers.
"""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ticket_search.training.sparse import kernels
from ticket_search.training.sparse.kernels import Floats

#: The density above which a layer is stored as a dense matrix, because torch's matrix product is faster.
DENSE_ABOVE = 0.6
#: The number of weights up to which a layer is always stored sparse: calling torch costs more than it saves.
SMALL = 8192

RELU = np.float32(0.0)
NO_ACTIVATION = np.float32(-np.inf)


class KeptWeights:
    """The positions of a layer's kept weights, in the order of `kernels`.

    Args:
        kept: the layer's mask, ``[outputs, inputs]`` bool.
    """

    def __init__(self, kept: Tensor) -> None:
        self.shape = tuple(kept.shape)
        self._positions = kept.flatten().nonzero()[:, 0]
        counts = kept.sum(1, dtype=torch.int64)
        self.rows = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).numpy()
        self.columns = (self._positions % kept.shape[1]).to(torch.int32).numpy()

    def __len__(self) -> int:
        """Return the number of kept weights."""
        return len(self.columns)

    def gather(self, weight: Tensor) -> Tensor:
        """Return the kept weights, ``[kept]``, of a matrix ``[outputs, inputs]``."""
        return weight.flatten()[self._positions]

    def scatter(self, values: Tensor) -> Tensor:
        """Return the matrix with the given kept weights and zeros elsewhere."""
        return values.new_zeros(self.shape).flatten().index_copy_(0, self._positions, values).view(self.shape)


class Parameters:
    """The slices of the flat buffers that belong to one layer.

    Attributes:
        values, bias: the layer's stored weights and its biases.
        d_values, d_bias: their gradients.
    """

    def __init__(self, flat: Floats, gradients: Floats, start: int, weights: int, biases: int) -> None:
        end = start + weights
        self.values, self.d_values = flat[start:end], gradients[start:end]
        self.bias, self.d_bias = flat[end : end + biases], gradients[end : end + biases]


class Layer(Protocol):
    """A fully connected layer and its activation."""

    stored: int
    """The number of stored weights."""

    def bind(self, parameters: Parameters) -> None:
        """Use these parameters from now on."""

    def gather(self, weight: Tensor) -> Tensor:
        """Return the stored weights, ``[stored]``, of a matrix ``[outputs, inputs]``."""

    def scatter(self, values: Tensor) -> Tensor:
        """Return the matrix ``[outputs, inputs]`` of the given stored weights."""

    def forward(self, x: Floats, out: Floats) -> None:
        """Set `out`, ``[outputs, b]``, to the layer's outputs for the inputs ``[inputs, b]``."""

    def backward(self, x: Floats, out: Floats, slope: Floats, x_slope: Floats | None) -> None:
        """Compute the gradients of the parameters and, unless `x_slope` is None, of the inputs.

        Args:
            x: the inputs, ``[inputs, b]``.
            out: the outputs, ``[outputs, b]``.
            slope: the gradients of the outputs, which are overwritten.
            x_slope: set to the gradients of the inputs.
        """


class SparseLayer(KeptWeights):
    """A layer that stores only its kept weights; see `Layer`.

    Args:
        kept: the mask, ``[outputs, inputs]`` bool.
        floor: `RELU` or `NO_ACTIVATION`.
    """

    def __init__(self, kept: Tensor, floor: np.float32) -> None:
        super().__init__(kept)
        self.stored = len(self)
        self._floor = floor

    def bind(self, parameters: Parameters) -> None:
        """See `Layer`."""
        self._p = parameters

    def forward(self, x: Floats, out: Floats) -> None:
        """See `Layer`."""
        kernels.forward(self.rows, self.columns, self._p.values, self._p.bias, x, out, self._floor)

    def backward(self, x: Floats, out: Floats, slope: Floats, x_slope: Floats | None) -> None:
        """See `Layer`."""
        kernels.through_activation(out, slope, self._floor, self._p.d_bias)
        kernels.weight_gradients(self.rows, self.columns, x, slope, self._p.d_values)
        if x_slope is not None:
            kernels.input_gradients(self.rows, self.columns, self._p.values, slope, x_slope)


class DenseLayer:
    """A layer that stores all weights and trains the kept ones; see `Layer`.

    Args:
        kept: the mask, ``[outputs, inputs]`` bool.
        floor: `RELU` or `NO_ACTIVATION`.
    """

    def __init__(self, kept: Tensor, floor: np.float32) -> None:
        self.stored = kept.numel()
        self._shape = tuple(kept.shape)
        self._mask = None if bool(kept.all()) else kept.float()
        self._floor = floor

    def bind(self, parameters: Parameters) -> None:
        """See `Layer`."""
        self._p = parameters
        self._weight = torch.from_numpy(parameters.values).view(self._shape)
        self._d_weight = torch.from_numpy(parameters.d_values).view(self._shape)

    def gather(self, weight: Tensor) -> Tensor:
        """See `Layer`."""
        return (weight if self._mask is None else weight * self._mask).flatten()

    def scatter(self, values: Tensor) -> Tensor:
        """See `Layer`."""
        return values.view(self._shape).clone()

    def forward(self, x: Floats, out: Floats) -> None:
        """See `Layer`."""
        torch.mm(self._weight, torch.from_numpy(x), out=torch.from_numpy(out))
        kernels.add_bias(out, self._p.bias, self._floor)

    def backward(self, x: Floats, out: Floats, slope: Floats, x_slope: Floats | None) -> None:
        """See `Layer`."""
        kernels.through_activation(out, slope, self._floor, self._p.d_bias)
        gradients = torch.from_numpy(slope)
        torch.mm(gradients, torch.from_numpy(x).t(), out=self._d_weight)
        if self._mask is not None:
            self._d_weight.mul_(self._mask)
        if x_slope is not None:
            torch.mm(self._weight.t(), gradients, out=torch.from_numpy(x_slope))


def is_sparse(kept: Tensor) -> bool:
    """Return whether a layer with this mask is stored sparse."""
    return kept.numel() <= SMALL or int(kept.sum()) <= DENSE_ABOVE * kept.numel()


def make_layer(kept: Tensor, floor: np.float32) -> Layer:
    """Create a layer, stored in the way that is faster."""
    return SparseLayer(kept, floor) if is_sparse(kept) else DenseLayer(kept, floor)
