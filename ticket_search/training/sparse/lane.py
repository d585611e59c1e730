"""A lane that trains a fully connected classifier of images with compiled kernels and without autograd."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ticket_search.data.dataset import Dataset
from ticket_search.data.dataset import Split as Images
from ticket_search.tasks.images import ImageSession, ImageTask
from ticket_search.tasks.task import Score, Session, Split
from ticket_search.training.outcome import Weights
from ticket_search.training.request import TrainRequest
from ticket_search.training.schedule import learning_rate
from ticket_search.training.sparse import kernels
from ticket_search.training.sparse.kernels import WIDTH, Floats
from ticket_search.training.sparse.layers import NO_ACTIVATION, RELU, Layer, Parameters, make_layer

_SCORED = 512


class SparseLane:
    """A lane for a fully connected ReLU network; see `training.lane.Lane`.

    Calling the lane makes one update of the kept weights.

    Args:
        request: the training request.
        task: the request's task.
        layers: the network's layers in order, with their names.
    """

    def __init__(self, request: TrainRequest, task: ImageTask, layers: list[tuple[str, nn.Linear]]) -> None:
        level, self._training = request.level, request.training
        self.device = torch.device("cpu")
        self._shift = level.shift
        self._data = task.data
        self._images = task.session(level.seed, request.training, level.start + level.shift)
        self.session: Session = self._images
        self._names = [name for name, _ in layers]
        self._widths = [layers[0][1].in_features, *(layer.out_features for _, layer in layers)]
        self._layers = _make_layers(request, layers)
        self._flat, self._gradients = (self._buffer() for _ in range(2))
        self._parameters = self._bind()
        self._optimizer = _Optimizer(request, self._flat, self._gradients)
        self._load_batch = _Loader(task.data)
        self._pass = _Activations(self._widths, request.training.batch_size)
        self._slopes = [np.zeros_like(out) for out in self._pass.values[1:]]
        self._scored = _Activations(self._widths, _SCORED)
        self.load(level.weights)

    def _buffer(self) -> Floats:
        biases = sum(self._widths[1:])
        # torch aligns its memory to 64 bytes, numpy to 16.
        return torch.zeros(sum(layer.stored for layer in self._layers) + biases).numpy()

    def _bind(self) -> list[Parameters]:
        parameters, start = [], 0
        for layer, width in zip(self._layers, self._widths[1:], strict=True):
            parameters.append(Parameters(self._flat, self._gradients, start, layer.stored, width))
            layer.bind(parameters[-1])
            start += layer.stored + width
        return parameters

    def __call__(self, iteration: int) -> Tensor:
        """Make update number `iteration`, counted from 0, and return the batch's loss, a scalar."""
        iteration += self._shift
        labels = self._load_batch.training(self._images, iteration, self._pass.inputs)
        self._pass.forward(self._layers)
        values, slopes = self._pass.values, self._slopes
        loss = kernels.cross_entropy(values[-1], labels, len(labels), slopes[-1])
        for number in reversed(range(len(self._layers))):
            below = slopes[number - 1] if number else None
            self._layers[number].backward(values[number], values[number + 1], slopes[number], below)
        self._optimizer.update(learning_rate(self._training, iteration))
        return torch.tensor(loss, dtype=torch.float32)

    def weights(self) -> Weights:
        """Return every parameter by name; the pruned weights are 0. The tensors are new."""
        weights = {}
        for name, layer, own in zip(self._names, self._layers, self._parameters, strict=True):
            weights[f"{name}.weight"] = layer.scatter(torch.from_numpy(own.values))
            weights[f"{name}.bias"] = torch.from_numpy(own.bias).clone()
        return weights

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Replace the kept weights and the biases."""
        for name, layer, own in zip(self._names, self._layers, self._parameters, strict=True):
            own.values[:] = layer.gather(weights[f"{name}.weight"].cpu()).numpy()
            own.bias[:] = weights[f"{name}.bias"].cpu().numpy()

    def optimizer_state(self) -> Weights:
        """Return the optimizer's state, which covers the stored weights only."""
        return self._optimizer.state()

    def load_optimizer_state(self, tensors: Weights) -> None:
        """Restore the optimizer's state."""
        self._optimizer.restore(tensors)

    def score(self, split: Split) -> Score:
        """Return the accuracy and the mean cross-entropy, in nats, on a split."""
        part = self._data.validation if split == "validation" else self._data.test
        count, scored = len(part), self._scored
        labels, loss, correct = part.labels.numpy(), 0.0, 0
        for start in range(0, count, _SCORED):
            rows = np.arange(start, min(start + _SCORED, count))
            self._load_batch.rows(part, rows, scored.inputs)
            scored.forward(self._layers)
            batch_loss, batch_correct = kernels.score(scored.values[-1], labels[rows], len(rows))
            loss, correct = loss + batch_loss, correct + batch_correct
        return Score(value=correct / count, loss=loss / count)


def _make_layers(request: TrainRequest, layers: list[tuple[str, nn.Linear]]) -> list[Layer]:
    made = []
    for name, layer in layers:
        kept = request.level.mask.get(f"{name}.weight", torch.ones(layer.weight.shape, dtype=torch.bool))
        made.append(make_layer(kept.cpu(), NO_ACTIVATION if name == layers[-1][0] else RELU))
    return made


class _Activations:
    """The activations of a batch.

    Args:
        widths: the numbers of inputs, of units in each hidden layer, and of outputs.
        examples: the number of examples.

    Attributes:
        values: the inputs and the outputs of each layer, ``[units, b]``.
    """

    def __init__(self, widths: list[int], examples: int) -> None:
        columns = -(-examples // WIDTH) * WIDTH
        self.values = [torch.zeros(width, columns).numpy() for width in widths]

    @property
    def inputs(self) -> Floats:
        """The inputs, ``[inputs, b]``."""
        return self.values[0]

    def forward(self, layers: list[Layer]) -> None:
        """Compute all outputs from the inputs."""
        for layer, x, out in zip(layers, self.values[:-1], self.values[1:], strict=True):
            layer.forward(x, out)


class _Optimizer:
    """Adam or SGD over a flat buffer of parameters."""

    def __init__(self, request: TrainRequest, flat: Floats, gradients: Floats) -> None:
        self._spec = request.training.optimizer
        self._flat, self._gradients = flat, gradients
        self._first, self._second = np.zeros_like(flat), np.zeros_like(flat)
        self._step = 0

    def update(self, rate: float) -> None:
        """Make one update."""
        spec = self._spec
        self._step += 1
        if spec.name == "adam":
            moments = self._first, self._second
            kernels.adam(self._flat, self._gradients, *moments, self._step, rate, spec.weight_decay)
        else:
            kernels.sgd(self._flat, self._gradients, self._first, rate, spec.momentum, spec.weight_decay)

    def state(self) -> Weights:
        """Return the state by name. The tensors share memory with the optimizer."""
        tensors = {"step": torch.tensor(self._step), "first": torch.from_numpy(self._first)}
        return tensors | ({"second": torch.from_numpy(self._second)} if self._spec.name == "adam" else {})

    def restore(self, tensors: Weights) -> None:
        """Restore a state that `state` returned."""
        self._step = int(tensors["step"])
        self._first[:] = tensors["first"].numpy()
        if self._spec.name == "adam":
            self._second[:] = tensors["second"].numpy()


class _Loader:
    """Writes batches of normalized images, transposed to ``[pixels, b]``."""

    def __init__(self, data: Dataset) -> None:
        channels, height, width = data.image_shape
        self._data = data
        self._pixels = channels * height * width
        self._scale, self._shift = (v.repeat(1, height, width).flatten().numpy() for v in (data.scale, data.shift))
        self._is_augmented = bool(data.augment.crop or data.augment.flip)
        self._labels = data.train.labels.numpy()

    def training(self, session: ImageSession, iteration: int, x: Floats) -> NDArray[np.int64]:
        """Write the training batch of an iteration into `x`, and return its labels, ``[b]``."""
        if self._is_augmented:
            images, labels = session.batch(iteration)
            self._copy(images, x)
            return labels.numpy()
        rows = session.rows(iteration).numpy()
        self.rows(self._data.train, rows, x)
        chosen: NDArray[np.int64] = self._labels[rows]
        return chosen

    def rows(self, split: Images, rows: NDArray[np.int64], x: Floats) -> None:
        """Write the images with the given row numbers of a split into `x`."""
        images = split.images
        if images.dtype == torch.uint8 and self._pixels >= WIDTH:
            padded = np.full(-(-len(rows) // WIDTH) * WIDTH, rows[0])
            padded[: len(rows)] = rows
            flat = images.view(len(images), -1).numpy()
            kernels.load_images(flat, padded, self._scale, self._shift, x)
            return
        chosen = images.index_select(0, torch.from_numpy(rows)).float()
        self._copy(chosen.mul_(self._data.scale).add_(self._data.shift), x)

    def _copy(self, images: Tensor, x: Floats) -> None:
        torch.from_numpy(x)[:, : len(images)].copy_(images.reshape(len(images), -1).t())
