"""A finished level and its entry in the store."""

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
    """A trained level of a trajectory.

    Attributes:
        number: 0 for the dense network, n after n prunings.
        key: the level key.
        mask: the mask that the level was trained with.
        next_mask: the mask of the next level. None if the level will not be pruned, and always None for level 0,
            because several trajectories may share level 0 and prune it differently.
        final_weights: the weights after the last iteration; empty unless the level is level 0, a copy, or part of a
            trajectory that retrains without rewinding weights.
        curve: the learning curve; its last point was measured after the last iteration.
        figures: the measurements taken during training, keyed by the names of the figures in `stored_figures`.
        reused: whether another trajectory or another search trained the level.
        diverged: whether the loss stopped being finite, which ended the training; the test results are then nan.
        controls: the trained controls of the level's ticket.
        mask_distances: the distances that early-bird measured; empty except for level 0.
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
        """The dense network trained for the full schedule, the baseline of all tickets; defined only for level 0."""
        return next((control.level for control in self.controls if control.kind == "dense"), self)

    @property
    def val_loss(self) -> float:
        """The loss on the validation split after the last iteration; nan if the task has no loss."""
        return self.curve[-1].val_loss

    @property
    def val_metric(self) -> float:
        """The task's metric on the validation split after the last iteration."""
        return self.curve[-1].val_metric

    @property
    def test_loss(self) -> float:
        """The loss on the test split after the last iteration; nan if the task has no loss."""
        return float(self.figures["test_loss"])

    @property
    def test_metric(self) -> float:
        """The task's metric on the test split after the last iteration."""
        return float(self.figures["test_metric"])

    @property
    def early_stop_iteration(self) -> int:
        """The iteration of the lowest validation loss or, if the task has no loss, of the best metric."""
        return int(self.figures["early_stop_iteration"])

    @property
    def early_stop_test_metric(self) -> float:
        """The task's metric on the test split at `early_stop_iteration`."""
        return float(self.figures["early_stop_test_metric"])

    @property
    def iterations(self) -> int:
        """The number of optimizer updates made for this level."""
        return int(self.figures["iterations"])

    @property
    def train_seconds(self) -> float:
        """The number of seconds that training took on the machine that trained the level."""
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
    """A control of a ticket, trained in the same way as the ticket.

    Attributes:
        kind: a `Control`, or ``dense`` for the dense network trained for the full schedule if early-bird is on.
        draw: the number of the random draw, from 0.
        level: the trained control; its `mask` is the control's, not the ticket's.
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
    """Return the store entry for a level: figures and owner as JSON, masks packed at one bit per weight."""
    record: dict[str, Any] = {"level": number, "trainer": owner, "diverged": outputs.diverged}
    # Store figures under their older names too, because an older version of this package may share the store.
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
    """Return the level that `to_entry` wrote, with its tensors on the CPU."""
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
    # Keep the record's order, which is the network's, because pruning breaks ties between equal scores by this order.
    return {
        name: unpack(entry.tensors[prefix + name], tuple(shape))
        for name, shape in entry.record["shapes"].items()
        if prefix + name in entry.tensors
    }
