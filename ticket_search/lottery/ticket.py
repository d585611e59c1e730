"""A ticket as a thing: a file with a mask, the weights it starts from, and how it was found."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.utils import prune

from ticket_search.config.base import validate
from ticket_search.config.identity import canonical
from ticket_search.config.trajectory import ModelSpec, TrajectorySpec
from ticket_search.errors import SpecError
from ticket_search.models import build_from
from ticket_search.pruning.masks import Mask, density
from ticket_search.store.level_store import Entry

FORMAT = "ticket_search.ticket.1"
_METADATA = "ticket"
#: The inputs that stand in a file by their own names; those of other networks stand together under ``inputs``.
_IMAGES = ("image_shape", "classes")


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """A mask and what it starts from.

    Attributes:
        name: ``<trajectory_id>/<level>``.
        level_key: of the level that trains it.
        spec: the trajectory that found it, resolved: every duration in iterations, its constants of normalisation.
        inputs: keyword arguments that the network is built with; ``image_shape`` and ``classes`` of one that
            classifies images.
        start: the iteration of the schedule that its training starts at.
        shift: see `LevelInputs`; 0 but for fine-tuned ones.
        mask: parameter name -> boolean tensor, True = kept.
        weights: every parameter and buffer, on the CPU; pruned weights are zero.
        figures: the row of `levels` of its training, as plain data.
    """

    name: str
    level_key: str
    spec: TrajectorySpec
    inputs: Mapping[str, Any]
    start: int
    shift: int
    mask: Mask
    weights: dict[str, Tensor]
    figures: Mapping[str, Any]

    def to_bytes(self) -> bytes:
        """The ticket as a safetensors file: tensors ``mask/<name>`` (bool) and ``weights/<name>``, the rest as JSON.

        The JSON stands in the file's metadata under ``ticket``. Equal tickets make equal bytes.
        """
        # Of several keys safetensors would write the order anew each time.
        return save(self._tensors(), {_METADATA: json.dumps(self._plain())})

    def to_entry(self) -> Entry:
        """The ticket as an entry of a level store."""
        return Entry(record=self._plain(), tensors=self._tensors())

    @classmethod
    def from_entry(cls, entry: Entry) -> "Ticket":
        """The ticket that `to_entry` wrote.

        Raises:
            SpecError: the entry is no ticket's.
        """
        if entry.record.get("format") != FORMAT:
            raise SpecError(f"it has the format {entry.record.get('format')!r}; this version reads {FORMAT!r}")
        return _ticket(entry.record, entry.tensors)

    @property
    def density(self) -> float:
        """Kept over prunable weights, in (0, 1]."""
        return density(self.mask)

    @property
    def key(self) -> str:
        """Under which a level store keeps it: a digest of all that its training on other data depends on."""
        inputs = [self.inputs[name] for name in _IMAGES] if set(self.inputs) == set(_IMAGES) else [dict(self.inputs)]
        sha = hashlib.sha256(json.dumps([canonical(self.spec.model), *inputs]).encode())
        for name, value in sorted(self._tensors().items()):
            sha.update(f"|{name} {value.dtype} {list(value.shape)}|".encode())
            sha.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
        return sha.hexdigest()[:32]

    def cut_to(self, shapes: Mapping[str, torch.Size], inputs: Mapping[str, Any]) -> "Ticket":
        """The ticket as far as it fits a network of these shapes and inputs: a head for other classes is left out.

        Raises:
            SpecError: another tensor than one of the head does not fit, so it is not the network of the ticket.
        """
        head = set()
        classes = self.inputs.get("classes"), inputs.get("classes")
        for name in (*shapes, *self.weights):
            its, new = self.weights.get(name), shapes.get(name)
            old = None if its is None else its.shape
            if new is not None and old == new:
                continue
            if not new or not old or (old[0], new[0]) != classes or old[1:] != new[1:]:
                raise SpecError(
                    f"ticket {self.name!r}: {name!r} has the shape {old and list(old)} in the ticket and "
                    f"{new and list(new)} in {self.spec.model.name!r}, whose code has changed; export the ticket anew"
                )
            head.add(name)

        def fitting(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: value for name, value in tensors.items() if name not in head}

        return replace(self, mask=fitting(self.mask), weights=fitting(self.weights))

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"mask/{name}": kept.contiguous() for name, kept in self.mask.items()}
        # Parameters that share their memory are written once for each name.
        return tensors | {f"weights/{name}": value.detach().cpu().clone() for name, value in self.weights.items()}

    def _plain(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "ticket": self.name,
            "level_key": self.level_key,
            "trajectory": self.spec.model_dump(mode="json"),
            **_plain_inputs(self.inputs),
            "start": self.start,
            "shift": self.shift,
            "mask": list(self.mask),
            "figures": dict(self.figures),
        }

    def model(self) -> nn.Module:
        """The network with the ticket's weights, its mask held by ``torch.nn.utils.prune``, ready to train."""
        network = build_from(self.spec.model, self.inputs, self.spec.seed)
        network.load_state_dict(self.weights, strict=True)
        for name, kept in self.mask.items():
            weight = network.get_parameter(name)
            owners = [(m, n) for m in network.modules() for n, p in m.named_parameters(recurse=False) if p is weight]
            for module, parameter in owners:  # several where it is tied
                prune.custom_from_mask(module, parameter, kept)  # type: ignore[no-untyped-call]
        return network


def ticket_in_store(
    key: str, load: Callable[[str], Entry | None], model: ModelSpec, inputs: Mapping[str, Any]
) -> Ticket:
    """The ticket that a level store keeps under a key, for a network and its inputs; their classes may be others.

    Raises:
        SpecError: it is not there, is no ticket, or is for another network or inputs.
    """
    entry = load(key)
    if entry is None:
        raise SpecError(
            f"pruning.ticket: {key!r} is not in the level store; `ticket-search transfer` puts a ticket's file there"
        )
    try:
        ticket = Ticket.from_entry(entry)
    except SpecError as error:
        raise SpecError(f"pruning.ticket: {key!r} in the level store is no ticket: {error}") from None
    if ticket.spec.model.name != model.name:
        raise SpecError(
            f"ticket {ticket.name!r} is of the network {ticket.spec.model.name!r}, which {model.name!r} is not; "
            f"give model.name {ticket.spec.model.name!r}"
        )
    takes, found = _taken(ticket.inputs), _taken(inputs)
    if takes != found:
        raise SpecError(
            f"ticket {ticket.name!r} takes {takes}, and the data set's are {found.removeprefix('images of ')}; "
            "give a data set that it takes"
        )
    return ticket


def _taken(inputs: Mapping[str, Any]) -> str:
    """What a network takes, its outputs aside."""
    if set(inputs) == set(_IMAGES):
        return f"images of {' x '.join(map(str, inputs['image_shape']))}"
    return json.dumps({name: value for name, value in inputs.items() if name != "classes"}, sort_keys=True)


def read_ticket(path: str | Path) -> Ticket:
    """The ticket in a file that `Ticket.to_bytes` made.

    Raises:
        SpecError: there is no such file, or it is no ticket, or one of a newer version.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            said = json.loads((file.metadata() or {}).get(_METADATA, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except FileNotFoundError:
        raise SpecError(f"no ticket {str(path)!r}: there is no such file") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise SpecError(f"{str(path)!r} is no ticket: {error}") from None
    found = said.get("format", "none") if isinstance(said, dict) else "none"
    if found != FORMAT:
        raise SpecError(f"{str(path)!r} has the format {found!r}; this version reads {FORMAT!r}")
    try:
        return _ticket(said, tensors)
    except (KeyError, TypeError, ValueError, SpecError) as error:
        raise SpecError(f"{str(path)!r} is a damaged ticket: {type(error).__name__}: {error}") from None


def _plain_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    if set(inputs) != set(_IMAGES):
        return {"inputs": dict(inputs)}
    return {"image_shape": list(inputs["image_shape"]), "classes": inputs["classes"]}


def _inputs(plain: Mapping[str, Any]) -> Mapping[str, Any]:
    """The inverse of `_plain_inputs`."""
    if "inputs" in plain:
        return dict(plain["inputs"])
    channels, height, width = map(int, plain["image_shape"])
    return {"image_shape": (channels, height, width), "classes": int(plain["classes"])}


def _ticket(plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Ticket:
    ticket = Ticket(
        name=str(plain["ticket"]),
        level_key=plain["level_key"],
        spec=validate(TrajectorySpec, plain["trajectory"]),
        inputs=_inputs(plain),
        start=int(plain["start"]),
        shift=int(plain["shift"]),
        mask={name: tensors[f"mask/{name}"] for name in plain["mask"]},
        weights={n.removeprefix("weights/"): t for n, t in tensors.items() if n.startswith("weights/")},
        figures=dict(plain["figures"]),
    )
    if not ticket.mask:
        raise ValueError("it has no mask")
    for name, kept in ticket.mask.items():
        if kept.dtype != torch.bool or kept.shape != ticket.weights[name].shape:
            raise ValueError(
                f"the mask of {name!r} is {kept.dtype} {list(kept.shape)}, its weights are of the shape "
                f"{list(ticket.weights[name].shape)}"
            )
    return ticket


def load_ticket(path: str | Path) -> nn.Module:
    """The network of a ticket's file, on the CPU, ready to train: its weights set and its mask held.

    The mask is held by ``torch.nn.utils.prune``: a pruned parameter ``w`` is trained as ``w_orig``, and every forward
    pass uses ``w_orig * w_mask``. ``prune.remove(module, "weight")`` makes it plain again; before that
    ``copy.deepcopy`` fails, as with any network that torch prunes. What the file says beside the tensors
    (configuration, figures, level key) is in ``network.ticket``, a `Ticket`.

    Raises:
        SpecError: there is no such file, or it is no ticket; or its network is a user's own and cannot be imported.
    """
    ticket = read_ticket(path)
    network = ticket.model()
    network.ticket = ticket  # type: ignore[assignment]
    return network
