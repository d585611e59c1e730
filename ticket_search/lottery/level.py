"""A finished level, and its entry in the store."""

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from types import MappingProxyType
from typing import Any

from torch import Tensor

from ticket_search.lottery.early_bird import MaskDistance, distances_of
from ticket_search.pruning.masks import Mask, kept_weights, pack, prunable_weights, unpack
from ticket_search.results.figures import stored_figures
from ticket_search.store.level_store import Entry
from ticket_search.training.outcome import LevelOutputs, Point


@dataclass(frozen=True, kw_only=True)
class Level:
    """One level of a trajectory, trained.

    Attributes:
        number: 0 is the dense network, n comes after n prunings.
        key: the level key.
        mask: which weights it was trained with.
        next_mask: the mask of the next level; None for level 0, whose pruning depends on the trajectory.
        final_weights: after the last iteration; kept for level 0, copies, and levels that are not rewound, else empty.
        curve: the learning curve; its last point is after the last iteration.
        figures: what its training measured, by the names of `results.figures.stored_figures`.
        reused: whether another trajectory or another search had trained it.
        diverged: whether its loss stopped being finite; then only the curve is known.
        controls: the controls of its ticket.
        mask_distances: the distances that early-bird measured, for level 0.
    """

    number: int
    key: str
    mask: Mask
    next_mask: Mask | None
    final_weights: dict[str, Tensor]
    curve: list[Point]
    figures: Mapping[str, Any]
    reused: bool
    diverged: bool
    controls: tuple["ControlLevel", ...] = ()
    mask_distances: tuple[MaskDistance, ...] = ()

    @property
    def dense(self) -> "Level":
        """For level 0: the dense network trained to its end, which tickets are compared with."""
        return next((control.level for control in self.controls if control.kind == "dense"), self)

    @property
    def val_loss(self) -> float:
        """Mean cross-entropy, in nats, on the validation split after the last iteration."""
        return self.curve[-1].val_loss

    @property
    def val_metric(self) -> float:
        """The task's metric on the validation split after the last iteration."""
        return self.curve[-1].val_metric

    @property
    def test_loss(self) -> float:
        """The loss on the test split after the last iteration."""
        return float(self.figures["test_loss"])

    @property
    def test_metric(self) -> float:
        """The task's metric on the test split after the last iteration."""
        return float(self.figures["test_metric"])

    @property
    def early_stop_iteration(self) -> int:
        """The iteration of the lowest validation loss."""
        return int(self.figures["early_stop_iteration"])

    @property
    def early_stop_test_metric(self) -> float:
        """The task's metric on the test split at that iteration."""
        return float(self.figures["early_stop_test_metric"])

    @property
    def iterations(self) -> int:
        """Optimizer updates made for this level."""
        return int(self.figures["iterations"])

    @property
    def train_seconds(self) -> float:
        """Seconds that its training took, on whichever machine trained it."""
        return float(self.figures["train_seconds"])

    @property
    def kept_weights(self) -> int:
        """The number of weights that the mask keeps."""
        return kept_weights(self.mask)

    @property
    def prunable_weights(self) -> int:
        """The number of weights that a mask could remove."""
        return prunable_weights(self.mask)


@dataclass(frozen=True, kw_only=True)
class ControlLevel:
    """A control of a ticket, trained as the ticket was.

    Attributes:
        kind: a kind of `Control`; or ``dense``, for a level 0 that early-bird ended: the network trained to its end.
        draw: number of the draw, from 0.
        level: the trained control; its `mask` is the control's.
    """

    kind: str
    draw: int
    level: Level


def to_entry(
    outputs: LevelOutputs,
    *,
    number: int,
    mask: Mask,
    next_mask: Mask | None,
    final_weights: Mapping[str, Tensor],
    owner: str | None = None,
    mask_distances: Iterable[MaskDistance] = (),
    trained_with: Mapping[str, Any] = MappingProxyType({}),
) -> Entry:
    """The store's entry of a level: figures and owner as JSON, masks at one bit per weight."""
    record: dict[str, Any] = {"level": number, "trainer": owner, "diverged": outputs.diverged}
    # Older names too: an older version of this package may share the store.
    measured = {**vars(outputs), **trained_with}
    record |= {name: measured.get(figure.name) for figure in stored_figures() for name in figure.stored}
    record["curve"] = [[p.iteration, p.train_loss, p.val_loss, p.val_metric] for p in outputs.curve]
    if distances := [list(astuple(each)) for each in mask_distances]:
        record["mask_distances"] = distances
    record["shapes"] = {name: list(kept.shape) for name, kept in mask.items()}
    tensors = {f"mask/{name}": pack(kept) for name, kept in mask.items()}
    tensors |= {f"next_mask/{name}": pack(kept) for name, kept in (next_mask or {}).items()}
    tensors |= {f"final/{name}": value.cpu() for name, value in final_weights.items()}
    return Entry(record=record, tensors=tensors)


def from_entry(entry: Entry, key: str, *, reused: bool) -> Level:
    """The level that `to_entry` wrote, its tensors on the CPU."""
    record = entry.record
    mask, next_mask = _masks(entry, "mask/"), _masks(entry, "next_mask/")
    return Level(
        number=record["level"],
        key=key,
        mask=mask,
        next_mask=next_mask or None,
        final_weights={n.removeprefix("final/"): t for n, t in entry.tensors.items() if n.startswith("final/")},
        curve=[Point(iteration=i, train_loss=t, val_loss=v, val_metric=a) for i, t, v, a in record["curve"]],
        reused=reused,
        mask_distances=tuple(distances_of(record.get("mask_distances", []))),
        figures={figure.name: figure.read(record) for figure in stored_figures()},
        diverged=record["diverged"],
    )


def _masks(entry: Entry, prefix: str) -> Mask:
    # The record keeps the network's order of tensors, which breaks ties between equal scores.
    return {
        name: unpack(entry.tensors[prefix + name], tuple(shape))
        for name, shape in entry.record["shapes"].items()
        if prefix + name in entry.tensors
    }
