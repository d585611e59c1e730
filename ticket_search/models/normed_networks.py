"""ResNets and VGGs for CIFAR, with batch normalization.

Convolutions have no bias. Weights are Kaiming normal (He et al. 2015); batch norm starts with weight 1 and bias 0.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ticket_search.errors import SpecError
from ticket_search.models.networks import initialize

_VGG = {
    "vgg16": ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)),
    "vgg19": ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4),
}


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution if the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut.add_module("conv", nn.Conv2d(inputs, outputs, 1, stride, bias=False))
            self.shortcut.add_module("bn", nn.BatchNorm2d(outputs))

    def forward(self, images: Tensor) -> Tensor:
        """Map ``[b, inputs, h, w]`` to ``[b, outputs, h / stride, w / stride]``."""
        inner = functional.relu(self.bn1(self.conv1(images)))
        return functional.relu(self.bn2(self.conv2(inner)) + self.shortcut(images))


def resnet(name: str, image_shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """Build a ResNet with 6n + 2 layers of 16 to 64 channels, such as ``resnet20`` (He et al. 2016, section 4.2).

    Where the number of channels changes, the shortcut is a 1x1 convolution (option B), as in the code of Frankle et al.
    On CIFAR-10, resnet20 has 270,256 convolution weights, of which 2,560 are in shortcuts. Its output layer has 640
    weights.
    """
    network = nn.Sequential()
    network.add_module("conv", nn.Conv2d(image_shape[0], 16, 3, padding=1, bias=False))
    network.add_module("bn", nn.BatchNorm2d(16))
    network.add_module("relu", nn.ReLU())
    inputs = 16
    for segment, outputs in enumerate((16, 32, 64), 1):
        for block in range((int(name.removeprefix("resnet")) - 2) // 6):
            stride = 2 if segment > 1 and block == 0 else 1
            network.add_module(f"segment{segment}_block{block + 1}", _Block(inputs, outputs, stride))
            inputs = outputs
    network.add_module("pool", _MeanOfPixels())
    network.add_module("output", nn.Linear(inputs, classes))
    initialize(network, "kaiming_normal")
    return network


def vgg(name: str, image_shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """Build ``vgg16`` or ``vgg19``: 3x3 convolutions with batch norm, a pool after each block, and one output layer.

    The last pool averages all remaining pixels; all others are 2x2 max pools. On CIFAR-10, the convolutions have
    14,710,464 weights in ``vgg16`` and 20,018,880 in ``vgg19``. The output layer has 5,120 in both.

    Raises:
        SpecError: the images are too small for the pools.
    """
    channels, height, width = image_shape
    blocks = _VGG[name]
    smallest = 2 ** (len(blocks) - 1)
    if min(height, width) < smallest:
        raise SpecError(
            f"model {name!r}: images of {height}x{width} pixels are too small for {len(blocks) - 1} pools of 2x2; "
            f"the network needs at least {smallest}x{smallest}"
        )
    network = nn.Sequential()
    for number, block in enumerate(blocks, 1):
        for position, outputs in enumerate(block, 1):
            layer = f"{number}_{position}"
            network.add_module(f"conv{layer}", nn.Conv2d(channels, outputs, 3, padding=1, bias=False))
            network.add_module(f"bn{layer}", nn.BatchNorm2d(outputs))
            network.add_module(f"relu{layer}", nn.ReLU())
            channels = outputs
        if number < len(blocks):
            network.add_module(f"pool{number}", nn.MaxPool2d(2))
    network.add_module("pool", _MeanOfPixels())
    network.add_module("output", nn.Linear(channels, classes))
    initialize(network, "kaiming_normal")
    return network


class _MeanOfPixels(nn.Module):
    """A layer that averages over all pixels. Unlike adaptive pooling, it is deterministic on CUDA."""

    def forward(self, images: Tensor) -> Tensor:
        """Map ``[b, c, h, w]`` to the mean of each channel, ``[b, c]``."""
        return torch.mean(images, dim=(2, 3))
