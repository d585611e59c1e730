"""What a worker is told: plain data, for Ray to carry. Loads neither Ray nor torch."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ticket_search.config.search import SearchSpec
from ticket_search.config.trajectory import TrajectorySpec
from ticket_search.runs.places import data_path, store_folder
from ticket_search.storage.folder import Folder

#: Gives a worker, in its process, the data sets that it shares with others.
Shared = Callable[[], Mapping[Any, Any]] | None
#: The key of a step's result that holds the job's number and a `LevelReport`, an `EndReport` or a `HaltReport`.
REPORT = "report"
#: The key of a trial's configuration that holds its `Job`.
JOB = "job"


@dataclass(frozen=True, kw_only=True, repr=False)
class Job:
    """All that a worker needs to know to run one trajectory; plain data, for Ray to carry.

    Ray keeps several copies of a trial's configuration, and of its text, for as long as the search runs: of an object
    that is its own copy and has a short text it keeps one.

    Attributes:
        number: of the suggestion.
        trajectory: what to run, validated.
        run_id: of the search's run; "" where no search is being run.
        run_dir, store: absolute locations.
        data_dir: an absolute path.
        data: gives a worker the data sets that it shares with others, by their `DatasetSpec.source`; what is not among
            them, or all where it is None, each worker reads from `data_dir`.
        rewind_iterations: that trajectories of this search may ask of a shared level 0.
        tolerance: of the verdict on matching.
        checkpoint_seconds: between two checkpoints of a level's training; None makes none.
        threads: of torch.
        cpus, gpus: what the worker gets; with any share of a GPU it trains there.
        left_out: the nodes, by their ids, that the worker must not run on.
        import_paths: where the user's own modules are found.
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
    """The job of one suggestion."""
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
