"""The networks of Frankle & Carbin, "The Lottery Ticket Hypothesis" (ICLR 2019), Figure 2, and weight initializations.

As in the paper, weights are drawn from Glorot's normal distribution, and biases are 0. Only the ``mlp_`` networks,
which are not in the paper, use Kaiming's normal distribution instead.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from ticket_search.config.trajectory import Initialization
from ticket_search.errors import SpecError

#: The output channels of the 3x3 convolutions in each block; every block ends with a 2x2 max pool.
_BLOCKS = {
    "conv2": ((64, 64),),
    "conv4": ((64, 64), (128, 128)),
    "conv6": ((64, 64), (128, 128), (256, 256)),
}
_CONV_HIDDEN = (256, 256)


def lenet(name: str, image_shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """Build a fully connected ReLU network with the hidden layer widths given in its name, e.g. ``lenet_300_100``.

    Images may have any size. ``mlp_300_100`` is the same network with Kaiming's initialization for ReLU (He et al.
    2015) instead of Glorot's.
    """
    network = nn.Sequential()
    _fully_connected(network, math.prod(image_shape), [int(width) for width in name.split("_")[1:]], classes)
    initialize(network, "glorot_normal" if name.startswith("lenet_") else "kaiming_normal")
    return network


def conv(name: str, image_shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """Build ``conv2``, ``conv4`` or ``conv6``: VGG-like blocks, then two hidden layers of 256 units.

    On CIFAR-10, the three networks have 4,300,992, 2,425,024 and 2,261,184 prunable weights. The paper's table gives
    4.3M, 2.4M and 1.7M. The 1.7M for ``conv6`` does not match the layers listed in the same table, although the
    table's 1.1M for its convolutions alone does.

    Raises:
        SpecError: the images are too small for the pools.
    """
    channels, height, width = image_shape
    blocks = _BLOCKS[name]
    if min(height, width) < 2 ** len(blocks):
        raise SpecError(
            f"model {name!r}: images of {height}x{width} pixels are too small for {len(blocks)} pools of 2x2; "
            f"the network needs at least {2 ** len(blocks)}x{2 ** len(blocks)}"
        )
    network = nn.Sequential()
    number = 0
    for block in blocks:
        for out in block:
            number += 1
            network.add_module(f"conv{number}", nn.Conv2d(channels, out, 3, padding=1))
            network.add_module(f"conv{number}_relu", nn.ReLU())
            channels = out
        network.add_module(f"conv{number}_pool", nn.MaxPool2d(2))
    shrink = 2 ** len(blocks)
    _fully_connected(network, channels * (height // shrink) * (width // shrink), _CONV_HIDDEN, classes)
    initialize(network, "glorot_normal")
    return network


def _fully_connected(network: nn.Sequential, inputs: int, widths: Sequence[int], classes: int) -> None:
    network.add_module("flatten", nn.Flatten())
    for number, width in enumerate(widths, 1):
        network.add_module(f"fc{number}", nn.Linear(inputs, width))
        network.add_module(f"fc{number}_relu", nn.ReLU())
        inputs = width
    network.add_module("output", nn.Linear(inputs, classes))


#: The Kaiming initializations use the gain for ReLU and the fan-in (He et al. 2015).
INITIALIZATIONS: dict[Initialization, Callable[[Tensor], Tensor]] = {
    "kaiming_normal": partial(nn.init.kaiming_normal_, nonlinearity="relu"),
    "kaiming_uniform": partial(nn.init.kaiming_uniform_, nonlinearity="relu"),
    "glorot_normal": nn.init.xavier_normal_,
    "glorot_uniform": nn.init.xavier_uniform_,
    "orthogonal": nn.init.orthogonal_,
}


def initialize(network: nn.Module, name: Initialization) -> None:
    """Redraw the weights of all convolutions and fully connected layers, in order, and set their biases to 0."""
    for module in network.modules():
        if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            continue
        # A lazy layer has no weights to initialize yet; `models.prunable` rejects it.
        if not nn.parameter.is_lazy(module.weight):
            INITIALIZATIONS[name](module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
