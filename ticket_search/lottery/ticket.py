"""A ticket as a thing: a file with a mask, the weights it starts from, and how it was found."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.utils import prune

from ticket_search.errors import SpecError
from ticket_search.models import build
from ticket_search.pruning.masks import Mask
from ticket_search.spec.base import validate
from ticket_search.spec.trajectory import TrajectorySpec

FORMAT = "ticket_search.ticket.1"


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """A mask and what it starts from.

    Attributes:
        name: ``<trajectory_id>/<level>``.
        level_key: of the level that trains it.
        spec: the trajectory that found it, resolved: every duration in iterations, its constants of normalisation.
        image_shape: ``(c, h, w)`` of the images that the network takes.
        classes: the network's outputs.
        start: the iteration of the schedule that its training starts at.
        end: the one it ends at.
        mask: parameter name -> boolean tensor, True = kept.
        weights: every parameter and buffer, on the CPU; pruned weights are zero.
        figures: the row of `levels` of its training, as plain data.
    """

    name: str
    level_key: str
    spec: TrajectorySpec
    image_shape: tuple[int, int, int]
    classes: int
    start: int
    end: int
    mask: Mask
    weights: dict[str, Tensor]
    figures: Mapping[str, Any]

    def to_bytes(self) -> bytes:
        """The ticket as a safetensors file: tensors ``mask/<name>`` (bool) and ``weights/<name>``, the rest as JSON."""
        tensors = {f"mask/{name}": kept.contiguous() for name, kept in self.mask.items()}
        # Parameters that share their memory are written once for each name.
        tensors |= {f"weights/{name}": value.detach().cpu().clone() for name, value in self.weights.items()}
        said = {
            "ticket": self.name,
            "level_key": self.level_key,
            "trajectory": self.spec.model_dump(mode="json"),
            "image_shape": list(self.image_shape),
            "classes": self.classes,
            "start": self.start,
            "end": self.end,
            "mask": list(self.mask),
            "figures": dict(self.figures),
        }
        metadata = {"format": FORMAT} | {name: json.dumps(value) for name, value in said.items()}
        return save(tensors, metadata)

    def model(self) -> nn.Module:
        """The network with the ticket's weights, its mask held by ``torch.nn.utils.prune``, ready to train."""
        network = build(self.spec.model, self.image_shape, self.classes, self.spec.seed)
        network.load_state_dict(self.weights, strict=True)
        for name, kept in self.mask.items():
            module, _, parameter = name.rpartition(".")
            prune.custom_from_mask(network.get_submodule(module), parameter, kept)  # type: ignore[no-untyped-call]
        return network


def read_ticket(path: str | Path) -> Ticket:
    """The ticket in a file that `Ticket.to_bytes` made.

    Raises:
        SpecError: there is no such file, or it is no ticket, or one of a newer version.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            said = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except FileNotFoundError:
        raise SpecError(f"no ticket {str(path)!r}: there is no such file") from None
    except (SafetensorError, OSError) as error:
        raise SpecError(f"{str(path)!r} is no ticket: {error}") from None
    found = said.get("format", "none")
    if found != FORMAT:
        raise SpecError(f"{str(path)!r} has the format {found!r}; this version reads {FORMAT!r}")
    plain = {name: json.loads(value) for name, value in said.items() if name != "format"}
    channels, height, width = plain["image_shape"]
    return Ticket(
        name=plain["ticket"],
        level_key=plain["level_key"],
        spec=validate(TrajectorySpec, plain["trajectory"]),
        image_shape=(channels, height, width),
        classes=plain["classes"],
        start=plain["start"],
        end=plain["end"],
        mask={name: tensors[f"mask/{name}"] for name in plain["mask"]},
        weights={n.removeprefix("weights/"): t for n, t in tensors.items() if n.startswith("weights/")},
        figures=plain["figures"],
    )


def load_ticket(path: str | Path) -> nn.Module:
    """The network of a ticket's file, on the CPU, ready to train: its weights set and its mask held.

    The mask is held by ``torch.nn.utils.prune``: a pruned parameter ``w`` is trained as ``w_orig``, and every forward
    pass uses ``w_orig * w_mask``. ``prune.remove(module, "weight")`` makes it plain again. What the file says beside
    the tensors (configuration, figures, level key) is in ``network.ticket``, a `Ticket`.

    Raises:
        SpecError: there is no such file, or it is no ticket; or its network is a user's own and cannot be imported.
    """
    ticket = read_ticket(path)
    network = ticket.model()
    network.ticket = ticket  # type: ignore[assignment]
    return network
