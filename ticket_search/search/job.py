"""What a worker is told: plain data, for Ray to carry. Loads neither Ray nor torch."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ticket_search.spec.search import Range, SearchSpec, dotted
from ticket_search.spec.trajectory import TrajectorySpec
from ticket_search.storage.folder import Folder, open_folder

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
        trajectory: a `TrajectorySpec` as plain data.
        run_id: of the search's run; "" where no search is being run.
        run_dir, store: absolute locations.
        data_dir: an absolute path.
        data: Ray's reference to data sets that the workers of a node share, by their `DatasetSpec.source`; what is not
            among them, or all where it is None, each worker reads from `data_dir`.
        rewind_iterations: that trajectories of this search may ask of a shared level 0.
        tolerance: of the verdict on matching.
        checkpoint_seconds: between two checkpoints of a level's training; None makes none.
        threads: of torch.
        gpu: whether to train on the worker's GPU.
        import_paths: where the user's own modules are found.
    """

    number: int
    trajectory: dict[str, Any]
    run_id: str
    run_dir: str
    store: str
    data_dir: str
    rewind_iterations: list[int]
    tolerance: float
    checkpoint_seconds: float | None
    threads: int
    gpu: bool
    import_paths: list[str]
    data: Any = None

    def __repr__(self) -> str:
        return f"Job({self.number})"

    def __deepcopy__(self, memo: dict[int, Any]) -> "Job":
        return self


def make_job(
    spec: SearchSpec, number: int, trajectory: TrajectorySpec, run_dir: Folder, run_id: str, data: Any = None
) -> Job:
    """The job of one suggestion."""
    return Job(
        number=number,
        trajectory=trajectory.model_dump(mode="json"),
        run_id=run_id,
        run_dir=str(run_dir),
        store=str(store_folder(spec, run_dir)),
        data_dir=str(data_path(spec)),
        data=data,
        rewind_iterations=rewind_iterations(spec),
        tolerance=spec.search.tolerance,
        checkpoint_seconds=spec.search.checkpoint_seconds,
        threads=spec.resources.threads,
        gpu=spec.resources.gpus > 0,
        import_paths=[path for path in sys.path if path],
    )


def store_folder(spec: SearchSpec, run_dir: Folder) -> Folder:
    """Where the search's level store lies."""
    return open_folder(spec.store) if spec.store else run_dir / "store"


def data_path(spec: SearchSpec) -> Path:
    """Where the search's data sets lie, absolute; ``data/`` in the working directory where nothing is said."""
    return Path(spec.data_dir or "data").absolute()


def rewind_iterations(spec: SearchSpec) -> list[int]:
    """Those that the space lists. Of a range each trajectory asks for its own."""
    listed = [d for n, d in spec.space.items() if dotted(n) == "trajectory.rewind_iteration"]
    if not listed:
        return [spec.trajectory.rewind_iteration]
    return [] if isinstance(listed[0], Range) else list(listed[0])
