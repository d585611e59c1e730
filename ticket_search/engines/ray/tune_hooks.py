"""The search's three hooks into Ray Tune, and the run itself. What the hooks decide, `SearchDriver` decides."""

import logging
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from ray import tune
from ray.tune.error import TuneError
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from ticket_search.engines.job import JOB, REPORT, make_job
from ticket_search.engines.ray.connection import ends_with_ray
from ticket_search.engines.ray.nodes import Slots
from ticket_search.engines.ray.trainable import TrajectoryTrainable
from ticket_search.engines.receive import died
from ticket_search.errors import Fault, SpecError, StorageError, TicketSearchError
from ticket_search.search.driver import SearchDriver
from ticket_search.search.reports import EndReport, HaltReport, LevelReport, NotShared, NotStarted
from ticket_search.storage.folder import Folder

T = TypeVar("T")


class _Hook:
    """Ray pickles its hooks into snapshots of its own, which nothing is restored from: they leave the search out."""

    _search: SearchDriver

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def _guarded(self, act: Callable[[], T], otherwise: T) -> T:
        """Call the search. What keeps it from going on, a full disk say, ends the run without a traceback of Ray's."""
        try:
            return act()
        except TicketSearchError as error:
            # What is wrong by now is not the search as it was written.
            self._search.halt(TicketSearchError(str(error)) if isinstance(error, SpecError) else error)
            return otherwise


class _Suggest(_Hook, Searcher):
    """Ray asks here for the next trajectory and says when one has ended."""

    def __init__(self, search: SearchDriver, slots: Slots, run_dir: Folder, run_id: str, data: Any) -> None:
        super().__init__()
        self._search = search
        self._run_dir = run_dir
        self._run_id = run_id
        self._data = data
        self._slots = slots

    def suggest(self, trial_id: str) -> Any:
        del trial_id
        # With nothing running Tune asks again and again, for a minute, and calls no other hook.
        self._guarded(self._search.flush_if_due, None)
        # A suggestion made before there is room for it would know less than one made when there is.
        slots = self._guarded(self._slots.count, 0)
        if not self._search.is_ending and self._search.unfinished >= slots:
            return None
        suggestion = self._guarded(self._search.next, None)
        if suggestion is None:
            # As long as one runs it may come back; once told that this is the end, Ray asks no more.
            waits = self._search.unfinished and not self._search.is_ending
            return None if waits else str(Searcher.FINISHED)
        trajectory = self._search.spec.trajectory_at(suggestion.values, suggestion.seed)
        spec, number, left_out = self._search.spec, suggestion.number, self._slots.left_out
        return {JOB: make_job(spec, number, trajectory, self._run_dir, self._run_id, self._data, left_out)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The callback has told the search already."""

    def save(self, checkpoint_path: str) -> None:
        """Ray's snapshots hold nothing of ours."""

    def restore(self, checkpoint_path: str) -> None:
        """Nor is anything restored from them."""


class _Stop(_Hook, tune.Stopper):
    """Ray asks here, first of all, whether a trial that has reported a level is to be dropped."""

    def __init__(self, search: SearchDriver) -> None:
        self._search = search
        self.reasons: dict[str, str] = {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        number, report = result[REPORT]
        if isinstance(report, LevelReport):
            reason = self._guarded(lambda: self._search.level_finished(number, report), None)
            if reason is not None:
                self.reasons[trial_id] = reason
        # A search that was asked to stop lets levels finish, not trajectories.
        return trial_id in self.reasons or self._search.progress.stopped

    def stop_all(self) -> bool:
        return self._search.halted is not None


class _Watch(_Hook, tune.Callback):
    """Ray tells here what became of a trial."""

    def __init__(self, search: SearchDriver, stop: _Stop, slots: Slots) -> None:
        self._search = search
        self._stop = stop
        self._slots = slots

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        number, report = result.pop(REPORT)
        if isinstance(report, NotStarted):
            self._search.progress.stopped = True
        elif isinstance(report, NotShared):
            self._leave_out(number, report)
        elif isinstance(report, HaltReport):
            self._search.halt(StorageError(report.reason))
        elif isinstance(report, EndReport):
            self._guarded(lambda: self._search.ended(number, report), None)
        elif trial.trial_id in self._stop.reasons:
            end = EndReport(status="stopped", reason=self._stop.reasons.pop(trial.trial_id))
            self._guarded(lambda: self._search.ended(number, end), None)

    def _leave_out(self, number: int, report: NotShared) -> None:
        """Go on without a node that joined the cluster but does not reach the storage."""
        if report.node not in self._slots.left_out:
            self._search.say(f"left out, its trajectories run on other nodes: {report.reason}")
        self._search.take_back(number)
        if not self._slots.leave_out(report.node):
            self._search.halt(StorageError(report.reason))

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._guarded(lambda: self._search.started(trial.config[JOB].number), None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        # Ray gives up at once where a worker dies while it is handed a trajectory, else after `max_failures`.
        number = trial.config[JOB].number
        if trial.num_failures <= self._search.spec.search.max_failures and self._search.hand_out_again(number):
            return
        error = trial.error_file and Path(trial.error_file).read_text(errors="replace")
        self._guarded(lambda: self._search.ended(number, died(self._search, "", error)), None)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        # Ray keeps every trial; of what it keeps of a trial's results nothing is used, and it is most of it.
        for kept in (trial.run_metadata.metric_analysis, trial.run_metadata.metric_n_steps, trial.last_result):
            kept.clear()

    def on_step_end(self, iteration: int, trials: list[Any], **_: Any) -> None:
        self._guarded(self._search.flush_if_due, None)


class _Queue(FIFOScheduler):
    """Gives an actor whose trial has ended to the next suggestion.

    Tune's own choice, the oldest trial that waits, would also take it for a trial whose actor is being started, and end
    that start. With short trajectories actors were started and ended all the time, and 5 of 20 slots ran.
    """

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Leave all trials to Tune, which starts an actor for each, or reuses one that is idle."""


def run_on_ray(
    search: SearchDriver,
    run_dir: Folder,
    run_id: str = "",
    trainable: type[TrajectoryTrainable] = TrajectoryTrainable,
    data: Any = None,
) -> None:
    """Run a search's trajectories on the Ray that is connected to, until there is no more or it is asked to stop.

    Args:
        search: says what to run, and is told what comes of it.
        run_dir: of the search.
        run_id: of the run.
        trainable: runs one trajectory.
        data: from `connection.share`; None lets each worker read the data set.

    Raises:
        StorageError: the search cannot go on; what was finished is kept.
        TicketSearchError: nor without Ray, whose processes are gone.
    """
    spec = search.spec
    stop, slots = _Stop(search), Slots(spec.resources, spec.search.max_concurrent)
    with tempfile.TemporaryDirectory(prefix="ticket_search_") as scratch, _quiet(), ends_with_ray(), _one_message():
        tune.run(
            trainable,
            name="search",
            storage_path=scratch,
            search_alg=_Suggest(search, slots, run_dir, run_id, data),
            stop=stop,
            scheduler=_Queue(),  # type: ignore[no-untyped-call]
            callbacks=[_Watch(search, stop, slots)],
            num_samples=-1,
            max_failures=spec.search.max_failures,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
            raise_on_failed_trial=False,
            verbose=0,
        )
    if search.halted:
        raise search.halted


@contextmanager
def _one_message() -> Iterator[None]:
    """Tune turns an error in one of the hooks into a traceback: raise its last line, with the place it came from."""
    try:
        yield
    except TuneError as error:
        cause = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        places = re.findall(r'File "(.+)", line (\d+)', str(error))
        raise Fault(f"{cause} ({':'.join(places[-1])})" if places else cause) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Tune's log and warnings off the terminal: what matters of them stands in the tables."""
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"ray\.")
            yield
    finally:
        logger.setLevel(level)
