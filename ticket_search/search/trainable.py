"""A worker: one trajectory at a time, one level per step. Ray keeps the process and hands it the next trajectory."""

import sys
import traceback
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune

from ticket_search.errors import Diverged
from ticket_search.search.job import JOB, REPORT, Job
from ticket_search.search.search import EndReport, LevelReport
from ticket_search.spec.base import validate
from ticket_search.spec.identity import trajectory_id
from ticket_search.spec.trajectory import DatasetSpec, TrajectorySpec

if TYPE_CHECKING:
    from ticket_search.data.dataset import Dataset


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
