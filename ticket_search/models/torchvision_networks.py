"""Torchvision's classifiers, without pretrained weights. Torchvision is imported only when a classifier is built."""

from torch import nn

from ticket_search.config.base import unknown
from ticket_search.errors import SpecError

#: Disabling the auxiliary classifiers leaves a single output; an explicit init_weights avoids a warning.
_ARGUMENTS = {name: {"aux_logits": False, "init_weights": True} for name in ("googlenet", "inception_v3")}


def torchvision_network(name: str, image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build the network ``torchvision/<name>`` with torchvision's own initialization.

    If the images do not have 3 channels, the first convolution is replaced by one that accepts them. The new one is
    initialized with torch's default.

    Raises:
        SpecError: torchvision has no classifier with that name.
    """
    import torchvision.models

    prefix, _, short = name.partition("/")
    known = torchvision.models.list_models(module=torchvision.models)
    if short not in known:
        raise SpecError(unknown("model", name, [f"{prefix}/{k}" for k in known]))
    network: nn.Module = torchvision.models.get_model(
        short, weights=None, num_classes=classes, **_ARGUMENTS.get(short, {})
    )
    if image_shape[0] != 3:
        _replace_first_convolution(network, image_shape[0])
    return network


def _replace_first_convolution(network: nn.Module, channels: int) -> None:
    path, old = next((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    new = nn.Conv2d(
        channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        old.dilation,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    parent, _, child = path.rpartition(".")
    network.get_submodule(parent).register_module(child, new)
