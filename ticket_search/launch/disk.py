"""Estimates how much disk space a search will need."""

import math
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields
from statistics import fmean
from typing import Any

from ticket_search.config.search import SearchSpec
from ticket_search.config.space import Domain, Range, dotted
from ticket_search.config.trajectory import DatasetSpec, TrajectorySpec
from ticket_search.errors import SpecError
from ticket_search.storage.folder import Folder
from ticket_search.storage.local import LocalFolder
from ticket_search.tasks.task import NetworkSize

_DRAWS = 200
# Sizes in bytes, measured on searches with the digits data. tests/launch/test_disk.py checks them on real searches.
_POINT_IN_STORE = 65
_POINT_IN_TABLES = 30
_POINT_IN_TENSORBOARD = 140
_LEVEL_IN_STORE = 1_000
_LEVEL_IN_TABLES = 1_000
_EMPTY_TABLES = 15_000
_FLOAT = 4
_BYTES_PER_MASK_WEIGHT = 1 / 8


Sizes = Mapping[tuple[str, DatasetSpec], tuple[NetworkSize, int]]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The disk space that a search needs if every trajectory trains all of its levels, averaged over the search space.

    Attributes:
        levels: the mean number of levels of a trajectory, including level 0.
        dense: the bytes of weights, which are the final and rewind weights of dense networks and, if levels are not
            rewound, the final weights of every level.
        masks: the bytes of masks and curves in the store.
        tables: the bytes of tables, TensorBoard files and events.
    """

    levels: float
    dense: float
    masks: float
    tables: float

    @property
    def total(self) -> float:
        """The total number of bytes."""
        return self.dense + self.masks + self.tables


_FIELDS = [field.name for field in fields(Estimate)]


def estimate(spec: SearchSpec, sizes: Sizes) -> Estimate:
    """Estimate the disk space that a search needs, averaged over random points of its search space.

    Args:
        spec: the search.
        sizes: the size of the network and the number of training images, for each (network name, data set) pair.
    """
    draw = random.Random(0)
    points = []
    for _ in range(_DRAWS):
        values = {name: _drawn(domain, draw) for name, domain in spec.space.items()}
        try:
            points.append(_estimate_at(spec.trajectory_at(values, spec.seeds[0]), spec, sizes))
        except SpecError:  # some combinations of fields are invalid; their trajectories will fail
            continue
    mean = {name: fmean(getattr(point, name) for point in points) if points else 0.0 for name in _FIELDS}
    return Estimate(**mean)


def _estimate_at(trajectory: TrajectorySpec, spec: SearchSpec, sizes: Sizes) -> Estimate:
    """Estimate the disk space of the search, assuming that all of its trajectories are like this one."""
    trials = spec.planned_trials or 0
    size, images = _size(sizes, trajectory)
    training, pruning = trajectory.resolve(images).training, trajectory.pruning
    points = math.ceil(int(training.iterations) / int(training.evaluate_every))
    levels = 1 + pruning.pruned_levels
    dense_nets = min(trials, len(spec.seeds) * _variants(spec))
    finals = 1 if pruning.early_bird is None else 2
    dense = dense_nets * size.values * _FLOAT * (finals + _rewinds(spec, trials / max(1, dense_nets)))
    if pruning.retrain != "weights":  # each level starts from the previous level's final weights
        dense += trials * (levels - 1) * size.values * _FLOAT
    mask, curve = size.prunable * _BYTES_PER_MASK_WEIGHT, points * _POINT_IN_STORE + _LEVEL_IN_STORE
    controls = trials * sum(trajectory.controls.count(level, pruning.last_level) for level in range(1, levels))
    masks = (dense_nets + trials * (levels - 1)) * (2 * mask + curve) + controls * (mask + curve)
    per_level = points * (_POINT_IN_TABLES + _POINT_IN_TENSORBOARD) + _LEVEL_IN_TABLES
    return Estimate(levels=levels, dense=dense, masks=masks, tables=_EMPTY_TABLES + trials * levels * per_level)


def describe(spec: SearchSpec, estimated: Estimate, folder: Folder) -> str:
    """Describe an estimate to the user in one line, with a warning if too little space is free."""
    trials, levels = spec.planned_trials, round(estimated.levels)
    weights, masks, tables = map(in_words, (estimated.dense, estimated.masks, estimated.tables))
    line = (
        f"disk: about {in_words(estimated.total)} ({weights} of weights, {masks} of masks and curves, {tables} of "
        f"tables and TensorBoard files) for {trials} {'trajectory' if trials == 1 else 'trajectories'} of {levels} "
        f"{'level' if levels == 1 else 'levels'}, if none is stopped early"
    )
    if isinstance(folder, LocalFolder):
        nearest = next(path for path in (folder.path, *folder.path.parents) if path.exists())
        free = shutil.disk_usage(nearest).free
        if free < estimated.total:
            line += f"; only {in_words(free)} is free at {nearest}"
    return line


def in_words(size: float) -> str:
    """Format a number of bytes, e.g. ``1.2 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if size >= 10 or unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _size(sizes: Sizes, trajectory: TrajectorySpec) -> tuple[NetworkSize, int]:
    """Return the network's size and the number of training images at the checked point closest to `trajectory`."""
    name, dataset = trajectory.model.name, trajectory.dataset

    def likeness(tried: tuple[str, DatasetSpec]) -> tuple[bool, bool, int]:
        return tried[0] == name, tried[1].name == dataset.name, -abs(tried[1].validation - dataset.validation)

    return sizes[max(sizes, key=likeness)]


def _variants(spec: SearchSpec) -> float:
    """Return the number of dense networks per seed: one for each combination of the values outside ``pruning``."""
    sections = {dotted(name): domain for name, domain in spec.space.items()}
    other = [domain for name, domain in sections.items() if not name.startswith("pruning.")]
    return math.prod((_count(domain) for domain in other), start=1.0)


def _count(domain: Domain) -> float:
    if not isinstance(domain, Range):
        return len(domain)
    return math.inf if domain.step is None and (domain.log or not domain.is_integer) else domain.count


def _rewinds(spec: SearchSpec, sharing: float) -> float:
    """Return the number of rewind iterations at which the weights of each dense network are kept.

    Args:
        spec: the search.
        sharing: the number of trajectories that share a dense network. If the rewind iteration is drawn from a range,
            each of these trajectories draws a different one.
    """
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
