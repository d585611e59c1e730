"""Runs a search on Ray Tune. Three hooks connect Tune to the `SearchDriver`, which makes all decisions."""

import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ray import tune
from ray.tune.error import TuneError
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from ticket_search.engines.job import JOB, REPORT, Job, make_job
from ticket_search.engines.ray.connection import ends_with_ray
from ticket_search.engines.ray.lanes import MAILBOX, Crews, LanesTrainable
from ticket_search.engines.ray.nodes import Slots
from ticket_search.engines.ray.trainable import TrajectoryTrainable
from ticket_search.engines.receive import died
from ticket_search.engines.scratch import scratch_folder
from ticket_search.engines.worker import lanes_of
from ticket_search.errors import Fault, SpecError, StorageError, TicketSearchError
from ticket_search.search.driver import SearchDriver
from ticket_search.search.reports import EndReport, HaltReport, LevelReport, NotShared, NotStarted
from ticket_search.storage.folder import Folder

T = TypeVar("T")


class _Hook:
    """Base class of the hooks. Their pickles are empty, because Ray never restores the snapshots that contain them."""

    _search: SearchDriver

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def _guarded(self, act: Callable[[], T], otherwise: T) -> T:
        """Call a function of the search, and return its result.

        If the function raises a `TicketSearchError`, for example because the disk is full, halt the search and return
        `otherwise`. If the error reached Ray, Ray would print a traceback.
        """
        try:
            return act()
        except TicketSearchError as error:
            # While a search runs, a SpecError is a runtime failure (exit code 1), not bad input (exit code 2).
            self._search.halt(TicketSearchError(str(error)) if isinstance(error, SpecError) else error)
            return otherwise


class _Suggest(_Hook, Searcher):
    """The hook that Tune asks for the next trajectory."""

    def __init__(self, search: SearchDriver, slots: Slots, run_dir: Folder, run_id: str, data: Any) -> None:
        super().__init__()
        self._search = search
        self._run_dir = run_dir
        self._run_id = run_id
        self._data = data
        self._slots = slots

    def suggest(self, trial_id: str) -> Any:
        # While no trial runs, Tune calls only this hook, repeatedly, for up to a minute.
        self._guarded(self._search.flush_if_due, None)
        # Make a suggestion only when it can run, so that the sampler knows as many results as possible.
        slots = self._guarded(self._slots.count, 0)
        if not self._search.is_ending and self._occupied() >= slots:
            return None
        job = self._guarded(self.next_job, None)
        if job is None:
            # After FINISHED, Tune would not ask again, but a running trajectory may still have to be handed out again.
            waits = self._search.unfinished and not self._search.is_ending
            return None if waits else str(Searcher.FINISHED)
        return self._configuration(trial_id, job, slots)

    def next_job(self) -> Job | None:
        """Return the job of the search's next suggestion, or None if it has no suggestion at the moment."""
        suggestion = self._search.next()
        if suggestion is None:
            return None
        trajectory = self._search.spec.trajectory_at(suggestion.values, suggestion.seed)
        spec, number, left_out = self._search.spec, suggestion.number, self._slots.left_out
        return make_job(spec, number, trajectory, self._run_dir, self._run_id, self._data, left_out)

    def _occupied(self) -> int:
        """Return the number of trials that have not ended."""
        return self._search.unfinished

    def _configuration(self, trial_id: str, job: Job, slots: int) -> dict[str, Any]:
        """Return the configuration of a new trial."""
        return {JOB: job}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Do nothing, because `_Watch` has already informed the search."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing, because Ray's snapshots are never restored."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing, because Ray's snapshots are never restored."""


class _Stop(_Hook, tune.Stopper):
    """The hook that Tune calls first after each reported level, to ask whether to stop the trial."""

    def __init__(self, search: SearchDriver) -> None:
        self._search = search
        self.reasons: dict[str, str] = {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        number, report = result[REPORT]
        if isinstance(report, LevelReport):
            reason = self._guarded(lambda: self._search.level_finished(number, report), None)
            if reason is not None:
                self.reasons[trial_id] = reason
        # After a stop request, the search finishes the levels in training, but not their trajectories.
        return trial_id in self.reasons or self._search.progress.stopped

    def stop_all(self) -> bool:
        return self._search.halted is not None


class _Watch(_Hook, tune.Callback):
    """The hook that Tune calls when a trial starts, reports a result, fails or completes."""

    def __init__(self, search: SearchDriver, stop: _Stop, slots: Slots) -> None:
        self._search = search
        self._stop = stop
        self._slots = slots

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        number, report = result.pop(REPORT)
        if isinstance(report, NotStarted):
            self._search.progress.stopped = True
        elif isinstance(report, NotShared):
            self.leave_out(number, report)
        elif isinstance(report, HaltReport):
            self._search.halt(StorageError(report.reason))
        elif isinstance(report, EndReport):
            self._guarded(lambda: self._search.ended(number, report), None)
        elif trial.trial_id in self._stop.reasons:
            end = EndReport(status="stopped", reason=self._stop.reasons.pop(trial.trial_id))
            self._guarded(lambda: self._search.ended(number, end), None)

    def leave_out(self, number: int, report: NotShared) -> None:
        """Exclude a node that joined the cluster but cannot access the storage."""
        if report.node not in self._slots.left_out:
            self._search.say(f"excluded a node; its trajectories will run on other nodes: {report.reason}")
        self._search.take_back(number)
        if not self._slots.leave_out(report.node):
            self._search.halt(StorageError(report.reason))

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._guarded(lambda: self._search.started(trial.config[JOB].number), None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        # Ray gives up on a trial if it fails more than `max_failures` times, but also as soon as a worker dies while it
        # receives the trajectory. In the second case, hand the trajectory out again.
        number = trial.config[JOB].number
        if trial.num_failures <= self._search.spec.search.max_failures and self._search.hand_out_again(number):
            return
        error = trial.error_file and Path(trial.error_file).read_text(errors="replace")
        self._guarded(lambda: self._search.ended(number, died(self._search, "", error)), None)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        # Ray keeps every trial until the search ends. Nothing reads a trial's results again, so clear them; they
        # would take up most of the memory.
        for kept in (trial.run_metadata.metric_analysis, trial.run_metadata.metric_n_steps, trial.last_result):
            kept.clear()

    def on_step_end(self, iteration: int, trials: list[Any], **_: Any) -> None:
        self._guarded(self._search.flush_if_due, None)


class _SuggestCrew(_Suggest):
    """The hook that Tune asks for the first trajectory of a trial that runs several; see `lanes`."""

    crews: Crews

    def _occupied(self) -> int:
        return len(self.crews)

    def _configuration(self, trial_id: str, job: Job, slots: int) -> dict[str, Any]:
        self._guarded(lambda: self.crews.begin(trial_id, job, slots), None)
        return {JOB: job, MAILBOX: self.crews.mailbox}


class _StopCrew(_Stop):
    """The hook that Tune calls first after each report of a trial that runs several trajectories."""

    def __init__(self, search: SearchDriver, crews: Crews) -> None:
        super().__init__(search)
        self._crews = crews

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self._guarded(lambda: self._crews.receive(trial_id, *result[REPORT]), True)


class _WatchCrew(_Watch):
    """The hook that Tune calls with the errors of trials that run several trajectories."""

    def __init__(self, search: SearchDriver, stop: _Stop, slots: Slots, crews: Crews) -> None:
        super().__init__(search, stop, slots)
        self._crews = crews

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        del result[REPORT]  # `_StopCrew` has passed it on

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        error = trial.error_file and Path(trial.error_file).read_text(errors="replace")
        self._guarded(lambda: self._crews.lost(trial.trial_id, error), None)


class _Queue(FIFOScheduler):
    """A scheduler that hands a finished trial's actor to the next suggestion.

    By default, Tune gives the actor to the oldest waiting trial, even if a new actor is already being started for that
    trial, and then stops the new actor. With short trajectories, actors were constantly started and stopped, and only 5
    of 20 slots were in use.
    """

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Choose no trial, so that Tune starts an actor for each trial or reuses an idle one."""


def run_on_ray(
    search: SearchDriver,
    run_dir: Folder,
    run_id: str = "",
    trainable: type[TrajectoryTrainable] = TrajectoryTrainable,
    data: Any = None,
) -> None:
    """Run a search's trajectories on the connected Ray cluster, until no trajectory is left or the search must stop.

    Args:
        search: the driver of the search, which decides what to run and receives the reports.
        run_dir: the run directory.
        run_id: the id of this run.
        trainable: the class that runs a trajectory.
        data: the handle from `connection.share`; if None, each worker reads the data set itself.

    Raises:
        StorageError: the storage failed, so the search cannot continue; finished levels are kept.
        TicketSearchError: the processes of a local Ray cluster have died.
    """
    hooks = (
        _one_each(search, run_dir, run_id, data)
        if lanes_of(search.spec) == 1
        else _crews(search, run_dir, run_id, data)
    )
    with hooks as hooked, scratch_folder("ray") as scratch, _quiet(), ends_with_ray(), _one_message():
        tune.run(
            hooked.trainable or trainable,
            name="search",
            storage_path=str(scratch),
            search_alg=hooked.suggest,
            stop=hooked.stop,
            scheduler=_Queue(),  # type: ignore[no-untyped-call]
            callbacks=[hooked.watch],
            num_samples=-1,
            max_failures=hooked.max_failures,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
            raise_on_failed_trial=False,
            verbose=0,
        )
    if search.halted:
        raise search.halted


@dataclass(frozen=True, kw_only=True)
class _Hooks:
    """The hooks of a search, and what depends on them.

    Attributes:
        suggest, stop, watch: the hooks.
        max_failures: the number of times that Tune repeats a trial whose worker died.
        trainable: the class that runs a trial; None leaves the choice to the caller.
    """

    suggest: _Suggest
    stop: _Stop
    watch: _Watch
    max_failures: int
    trainable: type[TrajectoryTrainable] | None = None


@contextmanager
def _one_each(search: SearchDriver, run_dir: Folder, run_id: str, data: Any) -> Iterator[_Hooks]:
    """Return the hooks of a search whose trials run one trajectory each."""
    settings = search.spec.search
    slots, stop = Slots(search.spec.resources, settings.max_concurrent), _Stop(search)
    yield _Hooks(
        suggest=_Suggest(search, slots, run_dir, run_id, data),
        stop=stop,
        watch=_Watch(search, stop, slots),
        max_failures=settings.max_failures,
    )


@contextmanager
def _crews(search: SearchDriver, run_dir: Folder, run_id: str, data: Any) -> Iterator[_Hooks]:
    """Return the hooks of a search whose trials run several trajectories each."""
    lanes, most = lanes_of(search.spec), search.spec.search.max_concurrent
    slots = Slots(search.spec.resources, most and max(1, most // lanes))
    suggest = _SuggestCrew(search, slots, run_dir, run_id, data)
    suggest.crews = crews = Crews(search, lanes, suggest.next_job)
    stop = _StopCrew(search, crews)
    watch = _WatchCrew(search, stop, slots, crews)
    crews.leave_out = watch.leave_out
    try:
        # A trial is not repeated as a whole: `Crews` hands out each of its trajectories again.
        yield _Hooks(suggest=suggest, stop=stop, watch=watch, max_failures=0, trainable=LanesTrainable)
    finally:
        crews.close()


@contextmanager
def _one_message() -> Iterator[None]:
    """If a hook fails, shorten the message from Tune's whole traceback to its last line and source location."""
    try:
        yield
    except TuneError as error:
        cause = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        places = re.findall(r'File "(.+)", line (\d+)', str(error))
        raise Fault(f"{cause} ({':'.join(places[-1])})" if places else cause) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Tune's log and warnings off the terminal; the tables record everything that matters."""
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"ray\.")
            yield
    finally:
        logger.setLevel(level)
