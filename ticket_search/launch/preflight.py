"""What can be known to be wrong before anything is started."""

import itertools
import math
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ticket_search.config.search import SearchSpec
from ticket_search.config.trajectory import FULLY_CONNECTED, DatasetSpec, TrajectorySpec
from ticket_search.data import Arrays, check_fits, read_arrays
from ticket_search.engines.placement import gpus
from ticket_search.errors import DataError, SpecError
from ticket_search.launch.disk import NetworkSize
from ticket_search.runs.places import data_path
from ticket_search.store.level_store import Entry


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What checking a search has found.

    Attributes:
        sizes: (network's name, data set) -> its size, and the images of a training epoch; see `disk.estimate`.
        data: what was read, by `DatasetSpec.source`.
    """

    sizes: dict[tuple[str, DatasetSpec], tuple[NetworkSize, int]]
    data: dict[tuple[str, str | None], Arrays] = field(repr=False)

    @property
    def data_size(self) -> int:
        """Bytes."""
        return sum(arrays.size for arrays in self.data.values())

    def take_data(self) -> dict[tuple[str, str | None], Arrays]:
        """The data, for others: their digests taken, once for all, and not kept here any longer."""
        taken = dict(self.data)
        self.data.clear()
        for arrays in taken.values():
            _ = arrays.fingerprint
        return taken


def check(spec: SearchSpec, *, local: bool, entry: Callable[[str], Entry | None] = lambda key: None) -> Checked:
    """Read each data set and try each network that the space can ask for.

    Args:
        spec: the search.
        local: the trajectories will run on this machine, so its processors and GPUs are what there is.
        entry: the level store's entry of a key.

    Raises:
        SpecError: one message: what is wrong, and what would be right.
    """
    if local:
        _check_resources(spec)
    shapes: dict[DatasetSpec, tuple[int, tuple[int, int, int], int]] = {}
    sizes: dict[tuple[str, DatasetSpec], tuple[NetworkSize, int]] = {}
    data: dict[tuple[str, str | None], Arrays] = {}
    for trajectory in _points(spec):
        dataset = trajectory.dataset
        if dataset not in shapes:
            if dataset.source not in data:
                data[dataset.source] = _read(spec, dataset, local)
            arrays = data[dataset.source]
            check_fits(dataset, arrays)
            channels, height, width = arrays.train_images.shape[1:]
            train_images = len(arrays.train_labels) - dataset.validation
            shapes[dataset] = train_images, (channels, height, width), arrays.classes
        train_images, image_shape, classes = shapes[dataset]
        trajectory.resolve(train_images)
        _check_ticket(trajectory, image_shape, classes, entry)
        if (trajectory.model.name, dataset) not in sizes:
            sizes[trajectory.model.name, dataset] = _check_model(trajectory, image_shape, classes), train_images
    return Checked(sizes=sizes, data=data)


def _read(spec: SearchSpec, dataset: DatasetSpec, local: bool) -> Arrays:
    try:
        return read_arrays(dataset, data_path(spec))
    except DataError as error:
        if local:
            raise
        raise DataError(f"on {socket.gethostname()}, from which every node gets its data: {error}") from error


def _points(spec: SearchSpec) -> Iterator[TrajectorySpec]:
    return (spec.point(values, spec.seeds[0]) for values in spec.trial_points())


def _check_ticket(
    trajectory: TrajectorySpec,
    image_shape: tuple[int, int, int],
    classes: int,
    entry: Callable[[str], Entry | None],
) -> None:
    key = trajectory.pruning.ticket
    if key is None:
        return
    from ticket_search.lottery.ticket import ticket_in_store
    from ticket_search.models import build

    ticket = ticket_in_store(key, entry, trajectory.model, image_shape)
    network = build(trajectory.model, image_shape, classes, seed=0)
    ticket.cut_to({name: value.shape for name, value in network.state_dict().items()}, classes)


def _check_model(trajectory: TrajectorySpec, image_shape: tuple[int, int, int], classes: int) -> NetworkSize:
    # A fully connected network takes any image; for the others torch is worth the 4 s of its import.
    if FULLY_CONNECTED.fullmatch(trajectory.model.name):
        hidden = [int(width) for width in trajectory.model.name.split("_")[1:]]
        widths = [math.prod(image_shape), *hidden, classes]
        prunable = sum(a * b for a, b in itertools.pairwise(widths))
        return NetworkSize(values=prunable + sum(widths[1:]), prunable=prunable)
    from ticket_search.models import check as check_model

    values, prunable = check_model(trajectory.model, image_shape, classes)
    return NetworkSize(values=values, prunable=prunable)


def _check_resources(spec: SearchSpec) -> None:
    resources, cpus = spec.resources, os.cpu_count() or 1
    if resources.cpus > cpus:
        raise SpecError(f"resources.cpus: {resources.cpus:g} is more than this machine's {cpus}; give at most {cpus}")
    if resources.gpus:
        there = gpus()
        if math.ceil(resources.gpus) > there:
            raise SpecError(
                f"resources.gpus: {resources.gpus:g} asks for a GPU and this machine has {there}; "
                "give 0 to train on the CPU, or the --address of a cluster that has one"
            )
