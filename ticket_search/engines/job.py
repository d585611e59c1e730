"""Jobs, the plain data that workers receive. This module imports neither Ray nor torch."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ticket_search.config.search import SearchSpec
from ticket_search.config.trajectory import TrajectorySpec
from ticket_search.runs.places import data_path, store_folder
from ticket_search.storage.folder import Folder

#: A handle to data that workers share: a worker calls it to get the data sets. None if nothing is shared.
Shared = Callable[[], Mapping[Any, Any]] | None
#: The key of the (job number, report) pair in the result of a Ray Tune step.
REPORT = "report"
#: The key of the `Job` in the configuration of a Ray Tune trial.
JOB = "job"


@dataclass(frozen=True, kw_only=True, repr=False)
class Job:
    """Everything that a worker needs to run one trajectory, as plain data.

    Until the search ends, Ray keeps several deep copies of each trial's configuration, and also its repr. To save
    memory, a deep copy of a job is the job itself, and the repr of a job is short.

    Attributes:
        number: the number of the suggestion.
        trajectory: the validated specification of the trajectory.
        run_id: the id of the search's run; "" outside a search.
        run_dir: the absolute location of the run directory.
        store: the absolute location of the level store.
        data_dir: the absolute path of the folder of data sets.
        data: a handle to the shared data sets, which are keyed by `DatasetSpec.source`; None if none are shared. A
            worker reads all other data sets from `data_dir`.
        rewind_iterations: the iterations whose weights are kept when level 0 is trained, because trajectories of this
            search may rewind to them.
        tolerance: the tolerance within which a ticket counts as matching its dense network.
        checkpoint_seconds: the time between two checkpoints of a level in training; None disables checkpoints.
        threads: the number of threads that torch uses.
        cpus: the number of CPUs of the worker.
        gpus: the number of GPUs of the worker, or its share of one; a worker with 0 GPUs trains on the CPU.
        left_out: the ids of the nodes on which the worker must not run.
        import_paths: the folders in which the user's modules are found.
    """

    number: int
    trajectory: TrajectorySpec
    run_id: str
    run_dir: str
    store: str
    data_dir: str
    rewind_iterations: list[int]
    tolerance: float
    checkpoint_seconds: float | None
    threads: int
    cpus: float
    gpus: float
    import_paths: list[str]
    data: Shared = None
    left_out: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Job({self.number})"

    def __deepcopy__(self, memo: dict[int, Any]) -> "Job":
        return self


def make_job(
    spec: SearchSpec,
    number: int,
    trajectory: TrajectorySpec,
    run_dir: Folder,
    run_id: str,
    data: Shared = None,
    left_out: tuple[str, ...] = (),
) -> Job:
    """Return the job for one suggestion."""
    return Job(
        number=number,
        trajectory=trajectory,
        run_id=run_id,
        run_dir=str(run_dir),
        store=str(store_folder(spec, run_dir)),
        data_dir=str(data_path(spec)),
        data=data,
        rewind_iterations=spec.rewind_iterations,
        tolerance=spec.search.tolerance,
        checkpoint_seconds=spec.search.checkpoint_seconds,
        threads=spec.resources.threads,
        cpus=spec.resources.cpus,
        gpus=spec.resources.gpus,
        left_out=left_out,
        import_paths=[path for path in sys.path if path],
    )
