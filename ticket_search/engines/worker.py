"""The worker, which runs trajectories level by level. Every engine uses it."""

import sys
import traceback
from collections import deque
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ticket_search.config.executors import STACKED_LANES
from ticket_search.config.identity import trajectory_id
from ticket_search.config.search import SearchSpec
from ticket_search.config.space import Range, dotted
from ticket_search.config.trajectory import DatasetSpec
from ticket_search.config.user_error import headline
from ticket_search.engines.job import Job
from ticket_search.errors import Diverged, StorageError, user_exit_as_error
from ticket_search.runs.directory import is_stop_requested
from ticket_search.runs.sharing import check_shared_once, note_of
from ticket_search.search.reports import EndReport, HaltReport, LevelReport, NotShared, NotStarted
from ticket_search.storage.folder import open_folder
from ticket_search.tasks.registry import task_kind

if TYPE_CHECKING:
    from ticket_search.lottery.lanes import Ended
    from ticket_search.lottery.level import Level
    from ticket_search.lottery.steps import Steps
    from ticket_search.tasks.task import Task

Report = LevelReport | EndReport | HaltReport | NotStarted | NotShared


class Worker:
    """Runs trajectories in this process, level by level: one at a time, or as many as its executor trains together.

    Each Ray actor and each process of `engines.processes` has one worker, and so does the inline engine. The owner of a
    worker passes jobs to `take`, and then calls `advance` for each report; nothing runs between these calls.
    """

    def __init__(self) -> None:
        from ticket_search.lottery.lanes import Lanes

        self._lanes: Lanes[int] = Lanes()
        self._reporters: dict[int, _Reporter] = {}
        self._reports: deque[tuple[int, Report]] = deque()

    @property
    def numbers(self) -> list[int]:
        """The job numbers of the trajectories that have not yet reported their end."""
        return list(self._reporters)

    def take(self, job: Job) -> None:
        """Add a trajectory. Finished trajectories leave nothing in memory except the data set that was used last."""
        self._reporters[job.number] = reporter = _Reporter(job)
        try:
            if job.run_id:  # the node may have joined after the search checked all nodes
                check_shared_once(job.store, job.run_dir, job.run_id)
        except StorageError as error:
            self._reports.append((job.number, NotShared(reason=str(error))))
            return
        try:
            if is_stop_requested(open_folder(job.run_dir)):  # the user may have requested a stop while the job waited
                self._reports.append((job.number, NotStarted()))
                return
            with user_exit_as_error():
                self._lanes.add(job.number, reporter.steps())
        except Exception as error:
            self._reports.append((job.number, end_of(error)))

    def advance(self) -> tuple[int, Report]:
        """Run until a trajectory finishes a level or ends, and return its number and its report."""
        if not self._reports:
            for number, outcome in self._lanes.advance():
                self._reports.append((number, self._report(number, outcome)))
        number, report = self._reports.popleft()
        if not isinstance(report, LevelReport):
            del self._reporters[number]
        return number, report

    def _report(self, number: int, outcome: "Level | Ended") -> Report:
        try:
            with user_exit_as_error():
                return self._reporters[number].report(outcome)
        except Exception as error:  # raised by a user-defined metric, for example
            self._lanes.remove(number)
            return end_of(error)

    def drop(self, number: int) -> None:
        """Abandon the trajectory whose level was reported by the last call to `advance`."""
        del self._reporters[number]
        self._lanes.remove(number)

    def close(self) -> None:
        """Abandon all trajectories."""
        self._lanes.close()
        self._reporters.clear()


def run_job(job: Job) -> Iterator[Report]:
    """Run one trajectory, and yield its reports. The last report is not a `LevelReport`: it says why no more follow."""
    worker = Worker()
    worker.take(job)
    try:
        while worker.numbers:
            yield worker.advance()[1]
    finally:
        worker.close()


def lanes_of(spec: SearchSpec) -> int:
    """Return how many trajectories a worker runs at a time, which depends on the executors in the search space."""
    domain = next((domain for name, domain in spec.space.items() if dotted(name) == "training.executor"), None)
    names = [spec.training.executor] if domain is None or isinstance(domain, Range) else domain
    lanes = max(_lanes_of(name, spec.resources.lanes) for name in names)
    return min(lanes, spec.search.max_concurrent or lanes)


def _lanes_of(executor: str, asked: int | None) -> int:
    if executor in ("auto", "plain", "sparse"):
        return 1
    if executor == "stacked":
        return asked or STACKED_LANES
    from ticket_search.training.executors.registry import executor_for

    lanes = executor_for(executor).lanes
    return min(asked or lanes, lanes)


def end_of(error: Exception) -> HaltReport | EndReport:
    """Return the report on an error: it halts the search if the storage failed, and otherwise ends the trajectory."""
    if isinstance(error, StorageError):  # any other trajectory would fail in the same way
        return HaltReport(reason=str(error))
    if isinstance(error, Diverged):
        return EndReport(status="diverged", reason=str(error))
    # The search continues without this trajectory; the table of trajectories records the reason.
    return EndReport(status="failed", reason=headline(error), error="".join(traceback.format_exception(error)))


def prepare(job: Job) -> "Task":
    """Set the number of threads and the import path for a job, and return the job's task on its training device."""
    sys.path.extend(path for path in job.import_paths if path not in sys.path)
    import torch

    torch.set_num_threads(job.threads)
    spec = job.trajectory
    return _task(spec.task, spec.dataset, job.data, job.data_dir, "cuda" if job.gpus else "cpu")


class _Reporter:
    """Starts one trajectory, and creates its reports."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._spec = job.trajectory
        self._dense: Level | None = None

    def steps(self) -> "Steps[None]":
        """Set up the trajectory, and return a generator of its steps."""
        task = prepare(self._job)
        from ticket_search.lottery.levels import TrajectoryLevels
        from ticket_search.lottery.trajectory import trajectory_steps
        from ticket_search.store.level_store import LevelStore

        job, name = self._job, trajectory_id(self._spec)
        self._metric, self._log = task.metric, _Log(job, name)
        levels = TrajectoryLevels(
            self._spec,
            task,
            LevelStore(
                job.store, self._log, note=note_of(open_folder(job.run_dir), job.run_id) if job.run_id else None
            ),
            self._log,
            owner_finished=self._log.was_finished,
            owner=f"{job.run_id}/{name}",
            checkpoint_seconds=job.checkpoint_seconds,
        )
        return trajectory_steps(levels, job.rewind_iterations)

    def report(self, outcome: "Level | Ended") -> Report:
        """Return the report about a level, or about the end of the trajectory."""
        from ticket_search.lottery.lanes import Ended
        from ticket_search.lottery.rows import control_rows, curve_rows, early_bird_rows, layer_rows, level_row

        if isinstance(outcome, Ended):
            return EndReport(status="completed") if outcome.error is None else end_of(outcome.error)
        spec, metric = self._spec, self._metric
        self._dense = self._dense or outcome.dense
        return LevelReport(
            level=level_row(spec, outcome, self._dense, self._job.tolerance, metric),
            curve=curve_rows(spec, outcome, metric),
            layers=layer_rows(spec, outcome),
            controls=control_rows(spec, outcome, metric),
            early_bird=early_bird_rows(spec, outcome),
            notices=self._log.take_notices(),
        )


class _Log:
    """Logs a trajectory's events, and collects a notice for each event that the user should see at once."""

    def __init__(self, job: Job, trajectory: str) -> None:
        from ticket_search.results.events import EventLog

        self._job = job
        self._trajectory = trajectory
        self._events = EventLog(job.run_dir)
        self._notices: list[str] = []
        self._before: dict[str | None, set[str]] | None = None  # level key -> earlier events, read when first needed

    def __call__(self, event: str, **fields: object) -> None:
        self._events.log(event, trajectory_id=self._trajectory, **fields)
        if event == "entry_damaged":
            self._notices.append(
                f"the store's entry {fields['key']} was damaged ({fields['reason']}); it was moved to "
                f"{fields['path']}, and its level is trained again"
            )

    def was_finished(self, level_key: str) -> bool | None:
        """Return whether this search has logged the end of a level; None if it has not even logged the start."""
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
