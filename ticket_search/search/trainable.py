"""A worker: one trajectory at a time, one level per step. Ray keeps the process and hands it the next trajectory."""

import sys
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune

from ticket_search.errors import Diverged
from ticket_search.search.search import EndReport, LevelReport
from ticket_search.spec.base import validate
from ticket_search.spec.identity import trajectory_id
from ticket_search.spec.search import Range, SearchSpec, dotted
from ticket_search.spec.trajectory import DatasetSpec, TrajectorySpec

if TYPE_CHECKING:
    from ticket_search.data.dataset import Dataset

#: The key of a step's result that holds a `LevelReport` or an `EndReport`.
REPORT = "report"
#: The key of a trial's configuration that holds a `Job` as a dict.
JOB = "job"


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a worker needs to know to run one trajectory; plain data, for Ray to carry.

    Attributes:
        number: of the suggestion.
        trajectory: a `TrajectorySpec` as plain data.
        run_dir, store, data_dir: absolute paths.
        rewind_iterations: that trajectories of this search may ask of a shared level 0.
        tolerance: of the verdict on matching.
        threads: of torch.
        gpu: whether to train on the worker's GPU.
        import_paths: where the user's own modules are found.
    """

    number: int
    trajectory: dict[str, Any]
    run_dir: str
    store: str
    data_dir: str
    rewind_iterations: list[int]
    tolerance: float
    threads: int
    gpu: bool
    import_paths: list[str]


def make_job(spec: SearchSpec, number: int, trajectory: TrajectorySpec, run_dir: Path) -> Job:
    """The job of one suggestion."""
    return Job(
        number=number,
        trajectory=trajectory.model_dump(mode="json"),
        run_dir=str(run_dir.absolute()),
        store=str(store_path(spec, run_dir)),
        data_dir=str(data_path(spec)),
        rewind_iterations=_rewind_iterations(spec),
        tolerance=spec.search.tolerance,
        threads=max(1, int(spec.resources.cpus)),
        gpu=spec.resources.gpus > 0,
        import_paths=[path for path in sys.path if path],
    )


def store_path(spec: SearchSpec, run_dir: Path) -> Path:
    """Where the search's level store lies, absolute."""
    return (Path(spec.store) if spec.store else run_dir / "store").absolute()


def data_path(spec: SearchSpec) -> Path:
    """Where the search's data sets lie, absolute; ``data/`` in the working directory where nothing is said."""
    return Path(spec.data_dir or "data").absolute()


def _rewind_iterations(spec: SearchSpec) -> list[int]:
    """What the space lists. Of a range each trajectory asks for its own."""
    listed = [d for n, d in spec.space.items() if dotted(n) == "trajectory.rewind_iteration"]
    if not listed:
        return [spec.trajectory.rewind_iteration]
    return [] if isinstance(listed[0], Range) else list(listed[0])


class TrajectoryTrainable(tune.Trainable):
    """One trial is one trajectory; one step is one level, and a last step says how it ended."""

    _reports: Iterator[LevelReport | EndReport]

    def setup(self, config: dict[str, Any]) -> None:
        """Take up the first trajectory of this process."""
        self._reports = run_job(Job(**config[JOB]))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take up another trajectory; nothing of the last one is kept but the data set."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train, or find in the store, the next level."""
        report = next(self._reports)
        return {REPORT: report, "done": isinstance(report, EndReport)}


def run_job(job: Job) -> Iterator[LevelReport | EndReport]:
    """Run a trajectory; whatever happens, the last report says how it ended."""
    try:
        yield from _levels(job)
        yield EndReport(status="completed")
    except Diverged as error:
        yield EndReport(status="diverged", reason=str(error))
    except Exception as error:  # the search goes on without this trajectory, and its table says why
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        yield EndReport(status="failed", reason=reason, error=traceback.format_exc())


def _levels(job: Job) -> Iterator[LevelReport]:
    sys.path.extend(path for path in job.import_paths if path not in sys.path)
    import torch

    from ticket_search.lottery.rows import curve_rows, layer_rows, level_row
    from ticket_search.lottery.trajectory import run_trajectory
    from ticket_search.results.events import EventLog
    from ticket_search.store.level_store import LevelStore

    torch.set_num_threads(job.threads)
    spec = validate(TrajectorySpec, job.trajectory)
    data = _dataset(spec.dataset, job.data_dir, "cuda" if job.gpu else "cpu")
    levels = run_trajectory(
        spec,
        data,
        LevelStore(Path(job.store)),
        rewind_iterations=job.rewind_iterations,
        log=partial(EventLog(Path(job.run_dir)).log, trajectory_id=trajectory_id(spec)),
    )
    dense = None
    for level in levels:
        dense = dense or level
        yield LevelReport(
            level=level_row(spec, level, dense, job.tolerance),
            curve=curve_rows(spec, level),
            layers=layer_rows(spec, level),
        )


@lru_cache(maxsize=1)
def _dataset(spec: DatasetSpec, data_dir: str, device: str) -> "Dataset":
    from ticket_search.data.dataset import load_dataset

    return load_dataset(spec, Path(data_dir), device)


def as_config(job: Job) -> dict[str, Any]:
    """The configuration of the trial that runs a job."""
    return {JOB: asdict(job)}
