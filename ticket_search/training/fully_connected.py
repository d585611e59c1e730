"""Recognizes fully connected networks and layers, which some executors train in their own way."""

import torch
from torch import nn


def fully_connected_layers(network: nn.Module) -> list[tuple[str, nn.Linear]] | None:
    """Return the layers of a fully connected ReLU network, with their names; None if the network is anything else.

    Such a network is an ``nn.Sequential`` of ``Flatten``, and of ``Linear`` layers with biases and ``ReLU`` in between.
    """
    if type(network) is not nn.Sequential:
        return None
    modules = list(network.named_children())
    if modules and _is(modules[0][1], nn.Flatten):
        modules = modules[1:]
    layers = [(name, module) for name, module in modules[::2] if isinstance(module, nn.Linear) and replaceable(module)]
    between = modules[1::2]
    alternate = len(layers) == len(modules) - len(between) and all(_is(module, nn.ReLU) for _, module in between)
    own = {id(parameter) for _, layer in layers for parameter in layer.parameters()}
    complete = len(modules) % 2 == 1 and len(own) == 2 * len(layers) == len(list(network.parameters()))
    return layers if alternate and complete else None


def replaceable(layer: nn.Module) -> bool:
    """Return whether a module is a plain float32 ``nn.Linear`` with a bias, without hooks or parametrizations."""
    return (
        _is(layer, nn.Linear)
        and {name for name, _ in layer.named_parameters()} == {"weight", "bias"}
        and all(p.dtype == torch.float32 and p.requires_grad for p in layer.parameters())
    )


def _is(module: nn.Module, kind: type[nn.Module]) -> bool:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return type(module) is kind and not any(getattr(module, name) for name in hooks)
