"""How much storage a search will take, told before it starts."""

import math
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ticket_search.config.search import SearchSpec
from ticket_search.config.space import Domain, Range, dotted
from ticket_search.config.trajectory import DatasetSpec, TrajectorySpec
from ticket_search.errors import SpecError
from ticket_search.storage.folder import Folder
from ticket_search.storage.local import LocalFolder
from ticket_search.tasks.task import NetworkSize

_DRAWS = 200
# Bytes, measured on searches over the digits.
_POINT_IN_STORE = 65
_POINT_IN_TABLES = 30
_POINT_IN_TENSORBOARD = 140
_LEVEL_IN_STORE = 1_000
_LEVEL_IN_TABLES = 800
_EMPTY_TABLES = 15_000
_FLOAT = 4
_BYTES_PER_MASK_WEIGHT = 1 / 8


Sizes = Mapping[tuple[str, DatasetSpec], tuple[NetworkSize, int]]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a search takes if no trajectory is dropped.

    Attributes:
        levels: a trajectory, on average; level 0 is one.
        dense: bytes of weights: the dense networks' final ones and those to rewind to, and those that levels go on from
            which are not rewound.
        masks: bytes of masks and curves in the store.
        tables: bytes of tables, TensorBoard files and events.
    """

    levels: float
    dense: float
    masks: float
    tables: float

    @property
    def total(self) -> float:
        """Bytes."""
        return self.dense + self.masks + self.tables


def estimate(spec: SearchSpec, sizes: Sizes) -> Estimate:
    """What a search will take, from points drawn at random from its space.

    Args:
        spec: the search.
        sizes: (network's name, data set) -> its size, and the images of a training epoch.
    """
    trials = spec.planned_trials or 0
    dense_nets = min(trials, len(spec.seeds) * _variants(spec))
    levels = dense = masks = tables = 0.0
    fitting = 0
    draw = random.Random(0)
    for _ in range(_DRAWS):
        values = {name: _drawn(domain, draw) for name, domain in spec.space.items()}
        try:
            trajectory = spec.trajectory_at(values, spec.seeds[0])
            size, images = _size(sizes, trajectory)
            training = trajectory.resolve(images).training
        except SpecError:  # three fields that do not go together: that trajectory will fail, and say why
            continue
        fitting += 1
        points = math.ceil(int(training.iterations) / int(training.evaluate_every))
        count = 1 + trajectory.pruning.pruned_levels
        levels += count
        ends = 1 if trajectory.pruning.early_bird is None else 2
        dense += dense_nets * size.values * _FLOAT * (ends + _rewinds(spec, trials / max(1, dense_nets)))
        if trajectory.pruning.retrain != "weights":  # the next level starts from this one's weights
            dense += trials * (count - 1) * size.values * _FLOAT
        masks += (dense_nets + trials * (count - 1)) * (
            2 * size.prunable * _BYTES_PER_MASK_WEIGHT + points * _POINT_IN_STORE + _LEVEL_IN_STORE
        )
        last = trajectory.pruning.last_level
        controls = trials * sum(trajectory.controls.count(level, last) for level in range(1, count))
        masks += controls * (size.prunable * _BYTES_PER_MASK_WEIGHT + points * _POINT_IN_STORE + _LEVEL_IN_STORE)
        per_level = points * (_POINT_IN_TABLES + _POINT_IN_TENSORBOARD) + _LEVEL_IN_TABLES
        tables += _EMPTY_TABLES + trials * count * per_level
    draws = max(1, fitting)
    return Estimate(levels=levels / draws, dense=dense / draws, masks=masks / draws, tables=tables / draws)


def describe(spec: SearchSpec, found: Estimate, folder: Folder) -> str:
    """An estimate as a line for the user; says where there is too little room."""
    trials, levels = spec.planned_trials, f"{found.levels:.0f}"
    line = (
        f"disk: up to about {in_words(found.total)} ({in_words(found.dense)} of weights, "
        f"{in_words(found.masks)} of masks and curves, {in_words(found.tables)} of tables and TensorBoard files) "
        f"for {trials} {'trajectory' if trials == 1 else 'trajectories'} "
        f"of {levels} {'level' if levels == '1' else 'levels'}"
    )
    if isinstance(folder, LocalFolder):
        nearest = next(path for path in (folder.path, *folder.path.parents) if path.exists())
        free = shutil.disk_usage(nearest).free
        if free < found.total:
            line += f"; only {in_words(free)} are free at {nearest}"
    return line


def in_words(size: float) -> str:
    """Bytes for people, e.g. ``1.2 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if size >= 10 or unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _size(sizes: Sizes, trajectory: TrajectorySpec) -> tuple[NetworkSize, int]:
    """A network's size, and the images of an epoch; of a point that was not tried, those of the likest that was."""
    name, dataset = trajectory.model.name, trajectory.dataset

    def likeness(tried: tuple[str, DatasetSpec]) -> tuple[bool, bool, int]:
        return tried[0] == name, tried[1].name == dataset.name, -abs(tried[1].validation - dataset.validation)

    return sizes[max(sizes, key=likeness)]


def _variants(spec: SearchSpec) -> float:
    """How many dense networks the space has for a seed: the combinations of fields that are not about pruning."""
    sections = {dotted(name): domain for name, domain in spec.space.items()}
    other = [domain for name, domain in sections.items() if not name.startswith("pruning.")]
    return math.prod((_count(domain) for domain in other), start=1.0)


def _count(domain: Domain) -> float:
    if not isinstance(domain, Range):
        return len(domain)
    return math.inf if domain.step is None and (domain.log or not domain.is_integer) else domain.count


def _rewinds(spec: SearchSpec, sharing: float) -> float:
    """Rewind weights kept beside each dense network that so many trajectories share."""
    for name, domain in spec.space.items():
        if dotted(name) == "pruning.rewind_iteration":
            return sharing if isinstance(domain, Range) else len(domain)
    return 1.0


def _drawn(domain: Domain, draw: random.Random) -> Any:
    if not isinstance(domain, Range):
        return draw.choice(domain)
    if domain.is_integer or domain.step is not None:
        return domain.value(draw.randrange(domain.count))
    low, high = float(domain.low), float(domain.high)
    if domain.log:
        return min(high, max(low, math.exp(draw.uniform(math.log(low), math.log(high)))))
    return draw.uniform(low, high)
