"""Early-Bird tickets (You et al. 2020, arXiv 1909.11957), with individual weights pruned instead of channels.

While the dense network trains, the mask that pruning would produce at that moment is computed every few iterations.
Training ends once the latest mask is close to each of the few masks before it, which shows that the set of surviving
weights has settled.
"""

from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from typing import Any

from torch import Tensor

from ticket_search.config.pruning import EarlyBirdSpec
from ticket_search.pruning.masks import Mask, distance, pack, unpack


@dataclass(frozen=True, kw_only=True)
class MaskDistance:
    """The distance between the masks of two iterations: the fraction of prunable weights in which they differ."""

    iteration: int
    earlier_iteration: int
    distance: float


class EarlyBird:
    """A `training.request.Watch` that ends the training of the dense network once the mask has settled.

    Args:
        spec: the early-bird settings, with `every` in iterations.
        draw: returns the mask that pruning would produce from the given weights.

    Attributes:
        distances: the distances from each mask to the ``window - 1`` masks before it, in order of iteration.
    """

    def __init__(self, spec: EarlyBirdSpec, draw: Callable[[Mapping[str, Tensor]], Mask]) -> None:
        self.every = int(spec.every)
        self.distances: list[MaskDistance] = []
        self._spec = spec
        self._draw = draw
        self._masks: dict[int, Mask] = {}

    def __call__(self, iteration: int, weights: Mapping[str, Tensor]) -> bool:
        """Add the mask for `weights` to the window, and return whether training should end.

        Training should end once the window is full and the new mask is closer than the threshold to every other mask in
        the window.
        """
        mask, others = self._draw(weights), self._spec.window - 1
        distances = [
            MaskDistance(iteration=iteration, earlier_iteration=earlier, distance=distance(before, mask))
            for earlier, before in self._masks.items()
        ]
        self.distances += distances
        self._masks[iteration] = mask
        if len(self._masks) > others:
            del self._masks[min(self._masks)]
        return len(distances) == others and all(each.distance < self._spec.threshold for each in distances)

    def state(self) -> tuple[Any, dict[str, Tensor]]:
        """Return the distances so far, and the window's masks packed at one bit per weight."""
        shapes = {name: list(kept.shape) for mask in self._masks.values() for name, kept in mask.items()}
        record = {"distances": [list(astuple(d)) for d in self.distances], "shapes": shapes, "masks": [*self._masks]}
        tensors = {f"{i}/{name}": pack(kept) for i, mask in self._masks.items() for name, kept in mask.items()}
        return record, tensors

    def restore(self, record: Any, tensors: Mapping[str, Tensor]) -> None:
        """Restore a state that `state` returned."""
        self.distances = distances_of(record["distances"])
        self._masks = {
            i: {name: unpack(tensors[f"{i}/{name}"], tuple(shape)) for name, shape in record["shapes"].items()}
            for i in record["masks"]
        }


def distances_of(plain: list[list[Any]]) -> list[MaskDistance]:
    """Return the distances that a stored record contains as plain lists."""
    return [MaskDistance(iteration=i, earlier_iteration=e, distance=d) for i, e, d in plain]
