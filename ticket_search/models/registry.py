"""Build networks by name, and find their prunable parameters."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ticket_search.config.identity import derive_seed
from ticket_search.config.imports import load_function, source_digest
from ticket_search.config.trajectory import USER_FUNCTION, ModelSpec
from ticket_search.config.user_error import one_line
from ticket_search.errors import SpecError, quoted
from ticket_search.models.networks import conv, initialize, lenet
from ticket_search.models.normed_networks import resnet, vgg
from ticket_search.models.torchvision_networks import torchvision_network


def build(spec: ModelSpec, image_shape: tuple[int, int, int], classes: int, seed: int, draw: int = 0) -> nn.Module:
    """Build a network on the CPU, initialized from the seed alone; torch's global generators are left unchanged.

    Args:
        spec: the network's specification.
        image_shape: ``(c, h, w)``.
        classes: the number of outputs.
        seed: the trajectory's seed.
        draw: the index of the initialization: 0 is the trajectory's own; any other index gives an independent one.

    Raises:
        SpecError: see `build_from`; or the images are too small for the network.
    """
    return build_from(spec, {"image_shape": image_shape, "classes": classes}, seed, draw)


def build_from(spec: ModelSpec, inputs: Mapping[str, Any], seed: int, draw: int = 0) -> nn.Module:
    """Build a network for any task; see `build`.

    Args:
        spec: the network's specification. A user's function is called with `inputs` as keyword arguments. It must
            draw its random numbers from torch's global CPU generator, as ``torch.nn`` does.
        inputs: keyword arguments from the task. The networks of this package require ``image_shape`` and ``classes``.
        seed: the trajectory's seed.
        draw: the index of the initialization: 0 is the trajectory's own; any other index gives an independent one.

    Raises:
        SpecError: the name is unknown, the network does not fit the task, or a user's function fails or does not
            return an ``nn.Module``.
    """
    with torch.random.fork_rng(devices=[]):
        # Do not call torch.manual_seed: it would also seed the GPUs' generators, which fork_rng does not restore here.
        torch.default_generator.manual_seed(derive_seed(seed, "init", *([draw] if draw else [])))
        network = _user(spec.name, inputs) if USER_FUNCTION.fullmatch(spec.name) else _named(spec.name, inputs)
        if spec.init is not None:
            initialize(network, spec.init)
        return network


def _named(name: str, inputs: Mapping[str, Any]) -> nn.Module:
    if set(inputs) != {"image_shape", "classes"}:
        raise SpecError(
            f"model {name!r} classifies images, but the task builds networks from {', '.join(inputs) or 'nothing'}; "
            "use a network of your own, package.module:function"
        )
    image_shape, classes = inputs["image_shape"], inputs["classes"]
    if name.startswith(("lenet_", "mlp_")):
        return lenet(name, image_shape, classes)
    if name.startswith("resnet"):
        return resnet(name, image_shape, classes)
    if name.startswith("vgg"):
        return vgg(name, image_shape, classes)
    if name.startswith("torchvision/"):
        return torchvision_network(name, image_shape, classes)
    return conv(name, image_shape, classes)


def _user(name: str, inputs: Mapping[str, Any]) -> nn.Module:
    function = load_function(name)
    try:
        network = function(**inputs)
    except (Exception, SystemExit) as error:
        raise SpecError(f"model {name!r}: the function raised {one_line(error)}") from error
    if not isinstance(network, nn.Module):
        raise SpecError(f"model {name!r}: the function returned {quoted(network)}, not a torch.nn.Module")
    return network


def network_digest(spec: ModelSpec) -> str:
    """Return a digest of the source of a user's network; "" for the networks of this package and of torchvision.

    Raises:
        SpecError: the user's module cannot be imported.
    """
    return source_digest(spec.name) if USER_FUNCTION.fullmatch(spec.name) else ""


def check(spec: ModelSpec, image_shape: tuple[int, int, int], classes: int) -> tuple[int, int]:
    """Build a network and run two black images through it, in training and in evaluation mode.

    Returns:
        The number of elements in the network's parameters and buffers, and the number of prunable weights among them.

    Raises:
        SpecError: see `build`; or the network fails, does not return floats ``[2, classes]``, has nothing to prune, or
            has a value in its state dict that is not a tensor.
    """
    network = build(spec, image_shape, classes, seed=0)
    names = set(prunable(network))
    shape = " x ".join(map(str, image_shape))
    for mode in (True, False):
        # Dropout draws from the global generator, which must be left unchanged.
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            try:
                output = network.train(mode)(torch.zeros(2, *image_shape))
            except (Exception, SystemExit) as error:
                raise SpecError(f"model {spec.name!r} cannot take images of {shape}: {one_line(error)}") from error
        fits = isinstance(output, torch.Tensor) and output.is_floating_point() and output.shape == (2, classes)
        if not fits:
            found = f"{output.dtype} {list(output.shape)}" if isinstance(output, torch.Tensor) else f"{quoted(output)}"
            state = "training" if mode else "evaluation"
            raise SpecError(
                f"model {spec.name!r} in {state} mode returned {found} for 2 images of {shape}; "
                f"it must return floats of shape {[2, classes]}"
            )
    state_dict = network.state_dict()
    for name, value in state_dict.items():
        if not isinstance(value, Tensor):
            raise SpecError(
                f"model {spec.name!r}: its state dict has {quoted(value)} as {name!r}; only tensors can be saved"
            )
    return sum(v.numel() for v in state_dict.values()), sum(state_dict[name].numel() for name in names)


def aliases(network: nn.Module) -> dict[str, str]:
    """Map the additional names that tied parameters and buffers have in the state dict to their first names."""
    first: dict[int, str] = {}
    return {
        name: first[id(value)]
        for name, value in network.state_dict(keep_vars=True).items()
        if first.setdefault(id(value), name) != name
    }


def prunable(network: nn.Module, example: Tensor | None = None) -> tuple[str, ...]:
    """Return the names of the prunable parameters in registration order, except that the output layer's is last.

    A parameter is prunable if it has at least 2 dimensions, the last part of its name contains "weight", and it does
    not belong to an embedding. A tied parameter appears once, under its first name. `_output_layer` explains how the
    output layer is found.

    Args:
        network: the network. Its weights and torch's global CPU generator are left unchanged.
        example: inputs, on the network's device, for running the network once to find its output layer; if None, the
            layer registered last is the output layer.

    Raises:
        SpecError: no parameter is prunable, a lazy layer has no shape yet, or `network.output_layer` is not prunable.
    """
    weights = _weights(network)
    output = _output_layer(network, weights, example)
    return (*(name for name in weights if name != output), output)


def output_mark(network: nn.Module, names: tuple[str, ...]) -> str:
    """Return the part of a level key that names the output layer; "" if that layer is registered last.

    Earlier versions assumed that every network registers its output layer last. Returning "" for such networks keeps
    the level keys of those versions valid.
    """
    *_, last = _weights(network)
    return "" if names[-1] == last else f"|output layer {names[-1]}"


def _weights(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the prunable parameters by their first names, in registration order."""
    embeddings = {id(m.weight) for m in network.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    weights = {}
    for name, parameter in network.named_parameters():
        if nn.parameter.is_lazy(parameter):
            raise SpecError(
                f"the parameter {name!r} of {type(network).__name__} has no shape yet; replace the lazy layer"
            )
        if parameter.ndim >= 2 and "weight" in name.rpartition(".")[2] and id(parameter) not in embeddings:
            weights[name] = parameter
    if not weights:
        present = ", ".join(f"{name} {list(p.shape)}" for name, p in network.named_parameters()) or "none"
        raise SpecError(
            f"{type(network).__name__} has nothing to prune: no parameter with 2 or more dimensions has 'weight' in "
            f"the last part of its name; its parameters: {present}"
        )
    return weights


def _output_layer(network: nn.Module, weights: Mapping[str, nn.Parameter], example: Tensor | None) -> str:
    """Return the name of the output layer's weight.

    If the network has an attribute `output_layer`, that attribute decides. Otherwise, the network runs on the example;
    of the modules that have a prunable weight, the last one to start is the output layer. Without an example, or if no
    such module runs, the output layer is the one registered last.
    """
    stated = getattr(network, "output_layer", None)
    if stated is not None and not inspect.ismethod(stated):
        return _stated_output_layer(network, weights, stated)
    *_, last = weights
    return last if example is None else _last_to_run(network, weights, example) or last


def _stated_output_layer(network: nn.Module, weights: Mapping[str, nn.Parameter], stated: object) -> str:
    target = stated
    if isinstance(stated, str):
        named = [*network.named_modules(), *network.named_parameters(remove_duplicate=False)]
        target = dict[str, object](named).get(stated)
    parameters = list(target.parameters()) if isinstance(target, nn.Module) else [target]
    names = [name for name, weight in weights.items() if any(weight is parameter for parameter in parameters)]
    if not names:
        raise SpecError(
            f"{type(network).__name__}.output_layer is {str(stated)!r:.80}; it must be one of the prunable weights "
            f"{', '.join(weights)}, a module that contains one of them, or the name of either"
        )
    return names[-1]


def _last_to_run(network: nn.Module, weights: Mapping[str, nn.Parameter], example: Tensor) -> str | None:
    names = {id(weight): name for name, weight in weights.items()}
    ran: list[str] = []

    def note(module: nn.Module, inputs: object) -> None:
        ran.extend(names[id(p)] for p in module.parameters(recurse=False) if id(p) in names)

    # Record modules when they start, not when they end: the network itself, which may own a weight, always ends last.
    hooks = [module.register_forward_pre_hook(note) for module in network.modules()]
    mode = network.training
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            network.eval()(example)
    except (Exception, SystemExit) as error:
        raise SpecError(
            f"{type(network).__name__} cannot take inputs of {list(example.shape)}: {one_line(error)}"
        ) from error
    finally:
        network.train(mode)
        for hook in hooks:
            hook.remove()
    return ran[-1] if ran else None
