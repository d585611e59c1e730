"""The networks of Frankle & Carbin, "The Lottery Ticket Hypothesis" (ICLR 2019), Figure 2.

Weights are Gaussian Glorot, biases 0, as there.
"""

import math
from collections.abc import Sequence

from torch import nn

from ticket_search.errors import SpecError

#: Output channels of the 3x3 convolutions of each block; a 2x2 max pool ends the block.
_BLOCKS = {
    "conv2": ((64, 64),),
    "conv4": ((64, 64), (128, 128)),
    "conv6": ((64, 64), (128, 128), (256, 256)),
}
_CONV_HIDDEN = (256, 256)


def lenet(name: str, image_shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """Fully connected layers of the widths in the name (``lenet_300_100``), ReLU between them, for any image size."""
    network = nn.Sequential()
    _fully_connected(network, math.prod(image_shape), [int(width) for width in name.split("_")[1:]], classes)
    return _glorot(network)


def conv(name: str, image_shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """``conv2``, ``conv4`` or ``conv6``: VGG-like blocks, then two hidden layers of 256.

    On CIFAR-10 they have 4,300,992, 2,425,024 and 2,261,184 prunable weights. The paper's table gives 4.3M, 2.4M and
    1.7M; the last does not follow from its own layers (its convolutions alone, 1.1M, do).

    Raises:
        SpecError: the pools would leave nothing of the image.
    """
    channels, height, width = image_shape
    blocks = _BLOCKS[name]
    if min(height, width) < 2 ** len(blocks):
        raise SpecError(
            f"model {name!r}: images of {height}x{width} pixels are too small for {len(blocks)} pools of 2x2; "
            f"it needs at least {2 ** len(blocks)}x{2 ** len(blocks)}"
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
    return _glorot(network)


def _fully_connected(network: nn.Sequential, inputs: int, widths: Sequence[int], classes: int) -> None:
    network.add_module("flatten", nn.Flatten())
    for number, width in enumerate(widths, 1):
        network.add_module(f"fc{number}", nn.Linear(inputs, width))
        network.add_module(f"fc{number}_relu", nn.ReLU())
        inputs = width
    network.add_module("output", nn.Linear(inputs, classes))


def _glorot(network: nn.Sequential) -> nn.Sequential:
    for module in network:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network
