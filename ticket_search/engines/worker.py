"""A worker: runs one trajectory, level by level, whichever engine the process belongs to."""

import sys
import traceback
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ticket_search.config.base import validate
from ticket_search.config.identity import trajectory_id
from ticket_search.config.trajectory import DatasetSpec, TrajectorySpec
from ticket_search.engines.job import Job
from ticket_search.errors import Diverged, StorageError
from ticket_search.runs.directory import is_stop_requested
from ticket_search.runs.sharing import check_shared_once
from ticket_search.search.driver import EndReport, HaltReport, LevelReport, NotStarted
from ticket_search.storage.folder import open_folder
from ticket_search.tasks.registry import task_kind

if TYPE_CHECKING:
    from ticket_search.tasks.task import Task

Report = LevelReport | EndReport | HaltReport | NotStarted


class Worker:
    """Runs trajectories in this process, level by level.

    Ray's actors, the processes of `engines.processes` and the inline engine each hold one. Whoever holds it takes up a
    job, then asks for one report after another; between two reports nothing runs.
    """

    def __init__(self) -> None:
        self._running: dict[int, Iterator[Report]] = {}

    @property
    def numbers(self) -> list[int]:
        """The trajectories it runs, by the numbers of their jobs."""
        return list(self._running)

    def take(self, job: Job) -> None:
        """Take up a trajectory. Nothing of earlier ones is kept but the data set."""
        self._running[job.number] = run_job(job)

    def advance(self) -> tuple[int, Report]:
        """Run until a trajectory has something to report: its number, and a level or how it ended."""
        number, reports = next(iter(self._running.items()))
        report = next(reports)
        if not isinstance(report, LevelReport):
            del self._running[number]
        return number, report

    def drop(self, number: int) -> None:
        """Give up a trajectory where it stands."""
        self._running.pop(number).close()  # type: ignore[attr-defined]


def run_job(job: Job) -> Iterator[Report]:
    """Run a trajectory; whatever happens, the last report says how it ended."""
    try:
        if job.run_id:  # this node may have joined after the search was begun
            check_shared_once(job.store, job.run_dir, job.run_id)
        if is_stop_requested(open_folder(job.run_dir)):  # while it waited for its turn
            yield NotStarted()
            return
        yield from _levels(job)
        yield EndReport(status="completed")
    except StorageError as error:  # no fault of this trajectory's, and none could do better
        yield HaltReport(reason=str(error))
    except Diverged as error:
        yield EndReport(status="diverged", reason=str(error))
    except Exception as error:  # the search goes on without this trajectory, and its table says why
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        yield EndReport(status="failed", reason=reason, error=traceback.format_exc())


def prepare(job: Job) -> "tuple[TrajectorySpec, Task]":
    """Make this process fit for a job: its threads, its modules; the trajectory, and its task on its device."""
    sys.path.extend(path for path in job.import_paths if path not in sys.path)
    import torch

    torch.set_num_threads(job.threads)
    spec = validate(TrajectorySpec, job.trajectory)
    return spec, _task(spec.task, spec.dataset, job.data, job.data_dir, "cuda" if job.gpu else "cpu")


def _levels(job: Job) -> Iterator[LevelReport]:
    spec, task = prepare(job)
    from ticket_search.lottery.rows import control_rows, curve_rows, early_bird_rows, layer_rows, level_row
    from ticket_search.lottery.trajectory import run_trajectory
    from ticket_search.store.level_store import LevelStore

    log = _Log(job, trajectory_id(spec))
    levels = run_trajectory(
        spec,
        task,
        LevelStore(job.store, log),
        rewind_iterations=job.rewind_iterations,
        log=log,
        owner_finished=log.was_finished,
        owner=f"{job.run_id}/{trajectory_id(spec)}",
        checkpoint_seconds=job.checkpoint_seconds,
    )
    dense = None
    for level in levels:
        dense = dense or level.dense
        yield LevelReport(
            level=level_row(spec, level, dense, job.tolerance),
            curve=curve_rows(spec, level),
            layers=layer_rows(spec, level),
            controls=control_rows(spec, level),
            early_bird=early_bird_rows(spec, level),
            notices=log.take_notices(),
        )


class _Log:
    """A trajectory's events, and what of them the user should be told at once."""

    def __init__(self, job: Job, trajectory: str) -> None:
        from ticket_search.results.events import EventLog

        self._job = job
        self._trajectory = trajectory
        self._events = EventLog(job.run_dir)
        self._notices: list[str] = []
        self._before: dict[str | None, set[str]] | None = None  # what was said of each level, once somebody asks

    def __call__(self, event: str, **fields: object) -> None:
        self._events.log(event, trajectory_id=self._trajectory, **fields)
        if event == "entry_damaged":
            self._notices.append(
                f"the store's entry {fields['key']} was damaged ({fields['reason']}); it is set aside as "
                f"{fields['path']}, and what it held is trained again"
            )

    def was_finished(self, level_key: str) -> bool | None:
        """Whether this search says so of a level; None if it never said that the level was started."""
        from ticket_search.results.events import read_events

        if self._before is None:
            self._before = {}
            for event in read_events(self._job.run_dir):
                self._before.setdefault(event.get("level_key"), set()).add(event["event"])
        said = self._before.get(level_key, set())
        return None if "level_started" not in said else "level_finished" in said

    def take_notices(self) -> tuple[str, ...]:
        notices, self._notices = tuple(self._notices), []
        return notices


@lru_cache(maxsize=1)
def _task(name: str, dataset: DatasetSpec, data: Any, data_dir: str, device: str) -> "Task":
    kind = task_kind(name)
    source = None if data is None else data().get(dataset.source)
    return kind.on(dataset, kind.read(dataset, Path(data_dir)) if source is None else source, device)
