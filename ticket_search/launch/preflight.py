"""Checks a search before anything is started."""

import math
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ticket_search.config.executors import check_executor, check_lanes
from ticket_search.config.search import SearchSpec
from ticket_search.config.settings import ResourcesSpec
from ticket_search.config.trajectory import FULLY_CONNECTED, USER_FUNCTION, DatasetSpec, TrajectorySpec
from ticket_search.engines.placement import cpus, gpus
from ticket_search.errors import DataError, SpecError
from ticket_search.runs.places import data_path
from ticket_search.store.level_store import Entry
from ticket_search.tasks.registry import task_kind
from ticket_search.tasks.task import Fit, NetworkSize, Source, TaskKind


@dataclass(frozen=True, kw_only=True)
class Checked:
    """The results of checking a search.

    Attributes:
        sizes: the size of the network and the number of training images, for each (network name, data set) pair.
        data: the data sets that were read, keyed by `DatasetSpec.source`.
        notices: lines about the data that the user should read.
    """

    sizes: dict[tuple[str, DatasetSpec], tuple[NetworkSize, int]]
    data: dict[tuple[str, str | None], Source] = field(repr=False)
    notices: tuple[str, ...] = ()

    @property
    def data_size(self) -> int:
        """The size of all data sets in bytes."""
        return sum(source.size for source in self.data.values())

    def take_data(self) -> dict[tuple[str, str | None], Source]:
        """Return the data sets with their fingerprints computed, and drop them from this object to free memory."""
        taken = dict(self.data)
        self.data.clear()
        for source in taken.values():
            _ = source.fingerprint
        return taken


def check(spec: SearchSpec, *, local: bool, entry: Callable[[str], Entry | None] = lambda key: None) -> Checked:
    """Read each data set and build each network in the search space.

    Args:
        spec: the search.
        local: whether trajectories will run on this machine, with its CPUs and GPUs.
        entry: returns the entry of the level store with a given key, or None.

    Raises:
        SpecError: the search cannot be run as written.
    """
    if local:
        _check_resources(spec)
    kind = task_kind(spec.task)
    fits: dict[tuple[str, DatasetSpec], Fit] = {}
    data: dict[tuple[str, str | None], Source] = {}
    suits: set[tuple[str, str]] = set()
    for trajectory in _points(spec):
        dataset = trajectory.dataset
        if dataset.source not in data:
            data[dataset.source] = _read(kind, spec, dataset, local)
        tried = trajectory.model.name, dataset
        if tried not in fits:
            fits[tried] = kind.check(trajectory, data[dataset.source])
        trajectory.resolve(fits[tried].training_examples)
        suited = trajectory.training.executor, trajectory.model.name
        check_executor(trajectory, spec.resources.gpus)
        if suited not in suits:
            suits.add(suited)
            _check_executor(trajectory, fits[tried], spec.resources)
        _check_ticket(trajectory, fits[tried], entry)
    return Checked(
        sizes={tried: (fit.size, fit.training_examples) for tried, fit in fits.items()},
        data=data,
        notices=tuple(dict.fromkeys(notice for fit in fits.values() for notice in fit.notices)),
    )


def _read(kind: TaskKind, spec: SearchSpec, dataset: DatasetSpec, local: bool) -> Source:
    try:
        source: Source = kind.read(dataset, data_path(spec))
    except DataError as error:
        if local:
            raise
        raise DataError(f"on {socket.gethostname()}, which sends the data to every node: {error}") from error
    return source


def _points(spec: SearchSpec) -> Iterator[TrajectorySpec]:
    return (spec.trajectory_at(values, spec.seeds[0]) for values in spec.points_to_check())


def _check_executor(trajectory: TrajectorySpec, fit: Fit, resources: ResourcesSpec) -> None:
    """Check that an executor can be created, and that it can train the trajectory's network."""
    executor, model, gpus = trajectory.training.executor, trajectory.model.name, resources.gpus
    check_lanes("plain" if executor == "auto" else executor, resources)
    # Other names and networks need no check that would have to import torch (4 s).
    if USER_FUNCTION.fullmatch(executor):
        from ticket_search.training.executors.registry import executor_for

        executor_for(executor)
    is_known = FULLY_CONNECTED.fullmatch(model) and trajectory.task == "classification"
    if executor in ("sparse", "stacked") and not is_known:
        import torch

        from ticket_search.models import build_from
        from ticket_search.training.executors import sparse, stacked

        network = build_from(trajectory.model, fit.inputs, seed=0)
        is_image = trajectory.task == "classification"
        example = torch.zeros(2, *fit.inputs["image_shape"]) if is_image else None
        if executor == "sparse":
            sparse.check_network(network, model, example)
        else:
            stacked.check_network(network, model, on_cpu=not gpus, example=example)


def _check_ticket(trajectory: TrajectorySpec, fit: Fit, entry: Callable[[str], Entry | None]) -> None:
    key = trajectory.pruning.ticket
    if key is None:
        return
    from ticket_search.lottery.ticket import ticket_in_store
    from ticket_search.models import build_from

    ticket = ticket_in_store(key, entry, trajectory.model, fit.inputs)
    network = build_from(trajectory.model, fit.inputs, seed=0)
    ticket.cut_to({name: value.shape for name, value in network.state_dict().items()}, fit.inputs)


def _check_resources(spec: SearchSpec) -> None:
    resources, processors = spec.resources, cpus()
    if resources.cpus > processors:
        raise SpecError(
            f"resources.cpus: {resources.cpus:g} is more than this machine has ({processors}); "
            f"give at most {processors}"
        )
    if resources.gpus:
        present = gpus()
        if math.ceil(resources.gpus) > present:
            raise SpecError(
                f"resources.gpus: {resources.gpus:g} is more than this machine has ({present}); "
                "give 0 to train on the CPU, or the --address of a cluster with GPUs"
            )
