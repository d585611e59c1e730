"""Tickets, and functions to read and write them. A ticket has a mask, initial weights and a record of its origin."""

import hashlib
import json
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.utils import prune

from ticket_search.config.base import FromList, Spec, validate
from ticket_search.config.fields import PositiveInt
from ticket_search.config.identity import canonical
from ticket_search.config.imports import check_code_allowed
from ticket_search.config.trajectory import ModelSpec, TrajectorySpec
from ticket_search.errors import SpecError
from ticket_search.models import build_from
from ticket_search.pruning.masks import Mask, density
from ticket_search.store.level_store import Entry

FORMAT = "ticket_search.ticket.1"
_METADATA = "ticket"
_CHECKSUM = "sha256"
#: The inputs of networks for images. In the metadata, they are top-level keys, whereas the inputs of other networks are
#: under the key ``inputs``.
_IMAGES = ("image_shape", "classes")


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """A mask, the initial weights to train with it, and the trajectory that found the mask.

    Attributes:
        name: ``<trajectory_id>/<level>``.
        level_key: the key of the level that trained the ticket.
        spec: the resolved specification of the trajectory: durations in iterations, normalization constants filled in.
        inputs: keyword arguments for building the network; ``image_shape`` and ``classes`` for images.
        start: the iteration of the schedule at which training starts.
        shift: see `LevelInputs.shift`; 0 except for fine-tuned tickets.
        mask: parameter name -> boolean tensor, True = kept.
        weights: every parameter and buffer, on the CPU; pruned weights are zero.
        figures: the ticket's row of the table `levels`, as plain data.
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
        """Return the ticket as a safetensors file with tensors ``mask/<name>`` (bool) and ``weights/<name>``.

        Everything else is JSON, with a checksum, under the metadata key ``ticket``. Equal tickets have equal bytes.
        """
        plain, tensors = self._plain(), self._tensors()
        # Use a single key, because safetensors writes several keys in an order that varies from call to call.
        return save(tensors, {_METADATA: json.dumps(plain | {_CHECKSUM: _digest(plain, tensors)})})

    def to_entry(self) -> Entry:
        """Return the ticket as an entry of a level store."""
        return Entry(record=self._plain(), tensors=self._tensors())

    @classmethod
    def from_entry(cls, entry: Entry) -> "Ticket":
        """Return the ticket that `to_entry` wrote.

        Raises:
            SpecError: the entry is not a ticket, or this version cannot read its format.
        """
        if entry.record.get("format") != FORMAT:
            raise SpecError(f"its format is {entry.record.get('format')!r}, but this version reads {FORMAT!r}")
        return _ticket(entry.record, entry.tensors)

    @property
    def density(self) -> float:
        """The fraction of prunable weights that are kept, in (0, 1]."""
        return density(self.mask)

    @property
    def key(self) -> str:
        """The ticket's key in a level store: a digest of everything that affects training the ticket on other data."""
        inputs = [self.inputs[name] for name in _IMAGES] if set(self.inputs) == set(_IMAGES) else [dict(self.inputs)]
        return _digest([canonical(self.spec.model), *inputs], self._tensors())[:32]

    def cut_to(self, shapes: Mapping[str, torch.Size], inputs: Mapping[str, Any]) -> "Ticket":
        """Return the ticket, but without its output layer if the network has a different number of classes.

        Args:
            shapes: the shapes of the network's parameters and buffers, by name.
            inputs: keyword arguments with which the network is built.

        Raises:
            SpecError: a tensor outside the output layer does not fit, so this is not the ticket's network.
        """
        head = set()
        classes = self.inputs.get("classes"), inputs.get("classes")
        for name in (*shapes, *self.weights):
            weights, new = self.weights.get(name), shapes.get(name)
            old = None if weights is None else weights.shape
            if new is not None and old == new:
                continue
            if not new or not old or (old[0], new[0]) != classes or old[1:] != new[1:]:
                raise SpecError(
                    f"ticket {self.name!r}: {name!r} has the shape {old and list(old)} in the ticket and "
                    f"{new and list(new)} in the network {self.spec.model.name!r}: the network's code or the ticket "
                    "file has changed; export the ticket again"
                )
            head.add(name)

        def fitting(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: value for name, value in tensors.items() if name not in head}

        return replace(self, mask=fitting(self.mask), weights=fitting(self.weights))

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"mask/{name}": kept.contiguous() for name, kept in self.mask.items()}
        # safetensors refuses tensors that share memory, as tied parameters do.
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
        """Build the network with the ticket's weights, masked by ``torch.nn.utils.prune``, ready to train.

        Raises:
            SpecError: the network cannot be built, or the ticket's weights or mask do not fit it.
        """
        try:
            network = build_from(self.spec.model, self.inputs, self.spec.seed)
        except RuntimeError as error:  # the images are too small for the network, or memory ran out
            reason = str(error).partition("\n")[0]
            raise SpecError(
                f"ticket {self.name!r}: the network {self.spec.model.name!r} cannot be built: {reason}"
            ) from None
        self.cut_to({name: value.shape for name, value in network.state_dict().items()}, self.inputs)
        network.load_state_dict(self.weights, strict=True)
        parameters = dict(network.named_parameters(remove_duplicate=False))
        for name, kept in self.mask.items():
            if name not in parameters:
                raise SpecError(f"ticket {self.name!r}: its mask has {name!r}, which is not a parameter of the network")
            weight = parameters[name]
            owners = [(m, n) for m in network.modules() for n, p in m.named_parameters(recurse=False) if p is weight]
            for module, parameter in owners:  # more than one if the weight is tied
                prune.custom_from_mask(module, parameter, kept)  # type: ignore[no-untyped-call]
        return network


class _Metadata(Spec):
    """The metadata of a ticket file; unknown keys are ignored."""

    model_config = ConfigDict(extra="ignore")

    ticket: str
    level_key: str
    trajectory: TrajectorySpec
    image_shape: Annotated[tuple[PositiveInt, PositiveInt, PositiveInt], FromList] | None = None
    classes: PositiveInt | None = None
    inputs: dict[str, Any] | None = None
    start: int
    shift: int
    mask: Annotated[tuple[str, ...], FromList, Field(min_length=1)]
    figures: dict[str, Any]

    @model_validator(mode="after")
    def _has_inputs(self) -> "_Metadata":
        if self.inputs is None and (self.image_shape is None or self.classes is None):
            raise ValueError("it needs 'image_shape' and 'classes', or else 'inputs'")
        return self

    @property
    def network_inputs(self) -> dict[str, Any]:
        """The keyword arguments for building the network, as plain data; the inverse of `_plain_inputs`."""
        images = {"image_shape": self.image_shape, "classes": self.classes}
        return images if self.inputs is None else self.inputs


def ticket_in_store(
    key: str, load: Callable[[str], Entry | None], model: ModelSpec, inputs: Mapping[str, Any]
) -> Ticket:
    """Load a ticket from a level store, and check that it is for the given network and inputs.

    Args:
        key: the ticket's key.
        load: returns the store's entry under a key, or None.
        model: the specification of the network to train.
        inputs: keyword arguments with which the network is built; ``classes`` may differ from the ticket's.

    Raises:
        SpecError: the store has no such entry, the entry is not a ticket, or the ticket is for another network or other
            inputs.
    """
    entry = load(key)
    if entry is None:
        raise SpecError(
            f"pruning.ticket: {key!r} is not in the level store; `ticket-search transfer` adds a ticket file to it"
        )
    try:
        ticket = Ticket.from_entry(entry)
    except SpecError as error:
        raise SpecError(f"pruning.ticket: the entry {key!r} of the level store is not a ticket: {error}") from None
    if ticket.spec.model.name != model.name:
        raise SpecError(
            f"ticket {ticket.name!r} belongs to the network {ticket.spec.model.name!r}, not to {model.name!r}; "
            f"set model.name to {ticket.spec.model.name!r}"
        )
    takes, given = _described(ticket.inputs), _described(inputs)
    if takes != given:
        raise SpecError(
            f"ticket {ticket.name!r} takes {takes}, but the data set has {given}; use a data set that fits the ticket"
        )
    return ticket


def _described(inputs: Mapping[str, Any]) -> str:
    """Describe a network's inputs, without the number of classes."""
    if set(inputs) == set(_IMAGES):
        return f"images of {' x '.join(map(str, inputs['image_shape']))}"
    return json.dumps({name: value for name, value in inputs.items() if name != "classes"}, sort_keys=True)


def read_ticket(path: str | Path) -> Ticket:
    """Read a ticket file that `Ticket.to_bytes` produced, without importing any code that the file names.

    Raises:
        SpecError: the file does not exist, is not a ticket, is damaged, or has a format that this version cannot read.
    """
    metadata, tensors = _read(str(path))
    checksum = metadata.pop(_CHECKSUM, None)
    # Files written before the checksum was introduced do not contain one.
    if checksum is not None and checksum != _digest(metadata, tensors):
        raise SpecError(f"{str(path)!r} is a damaged ticket: its checksum does not match; copy or export it again")
    try:
        return _ticket(metadata, tensors)
    except SpecError as error:
        raise SpecError(f"{str(path)!r} is a damaged ticket: {error}") from None


def _read(path: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the metadata and the tensors of a ticket file."""
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):  # opening a pipe would block until someone writes to it
            raise SpecError(f"{path!r} is not a ticket: it is not a regular file")
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_METADATA)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except FileNotFoundError:
        raise SpecError(f"ticket file {path!r} does not exist") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise SpecError(f"{path!r} is not a ticket: {error}") from None
    if text is None:
        raise SpecError(
            f"{path!r} is not a ticket: its metadata has no key {_METADATA!r}; `ticket-search export` writes tickets"
        )
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{path!r} is a damaged ticket: its metadata is not JSON: {error}") from None
    written = metadata.get("format") if isinstance(metadata, dict) else None
    if written != FORMAT:
        raise SpecError(f"the format of {path!r} is {written!r:.80}, but this version reads {FORMAT!r}")
    return metadata, tensors


def _plain_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    if set(inputs) != set(_IMAGES):
        return {"inputs": dict(inputs)}
    return {"image_shape": list(inputs["image_shape"]), "classes": inputs["classes"]}


def _digest(head: object, tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of plain data and tensors, as 64 hexadecimal digits."""
    sha = hashlib.sha256(json.dumps(head).encode())
    for name, value in sorted(tensors.items()):
        sha.update(f"|{name} {value.dtype} {list(value.shape)}|".encode())
        sha.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _ticket(plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Ticket:
    metadata = validate(_Metadata, plain)
    weights = {name.removeprefix("weights/"): t for name, t in tensors.items() if name.startswith("weights/")}
    for name, value in weights.items():
        # Infinity is allowed, because attention masks stored as buffers contain it.
        if value.is_floating_point() and bool(value.isnan().any()):
            raise SpecError(f"its weights {name!r} contain NaN")
    for name in metadata.mask:
        _check_mask(name, tensors.get(f"mask/{name}"), weights.get(name))
    return Ticket(
        name=metadata.ticket,
        level_key=metadata.level_key,
        spec=metadata.trajectory,
        inputs=metadata.network_inputs,
        start=metadata.start,
        shift=metadata.shift,
        mask={name: tensors[f"mask/{name}"] for name in metadata.mask},
        weights=weights,
        figures=metadata.figures,
    )


def _check_mask(name: str, kept: Tensor | None, weights: Tensor | None) -> None:
    if kept is None or weights is None:
        raise SpecError(f"it has no tensor {'mask' if kept is None else 'weights'}/{name}, which its metadata lists")
    if kept.dtype != torch.bool or kept.shape != weights.shape:
        raise SpecError(
            f"the mask of {name!r} is {kept.dtype} {list(kept.shape)}; it must be torch.bool {list(weights.shape)}"
        )


def load_ticket(file: str | Path, allow_code: bool = False) -> nn.Module:
    """Load a ticket file as a network on the CPU that has the ticket's weights and mask and is ready to train.

    The mask is applied by ``torch.nn.utils.prune``: a pruned parameter ``w`` is trained as ``w_orig``, and every
    forward pass uses ``w_orig * w_mask``. ``prune.remove(module, "w")`` turns ``w`` back into a plain parameter. Until
    then, ``copy.deepcopy`` of the network fails, as for any network pruned with torch. ``network.ticket`` is a `Ticket`
    with the rest of the file's content, such as the configuration, the figures and the level key.

    Args:
        file: a file that ``ticket-search export`` wrote.
        allow_code: whether to import code that the file names, such as a network ``package.module:function``.

    Raises:
        SpecError: the file does not exist or is not a ticket; it names code and `allow_code` is False; or that code
            cannot be imported.
    """
    ticket = read_ticket(file)
    check_code_allowed(ticket.spec, file, allow_code=allow_code)
    network = ticket.model()
    network.ticket = ticket  # type: ignore[assignment]
    return network
