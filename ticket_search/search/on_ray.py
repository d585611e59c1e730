"""The search's three hooks into Ray Tune, and the run itself. What the hooks decide, `Search` decides."""

import logging
import os
import signal
import socket
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

# Ray reads these when it is imported or started; whoever has set them keeps his values.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # Snapshots of Ray's own state: the record of suggestions and the tables are the authority.
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    # Tune would have one trial waiting for its actor at a time, and give it the actor of the first that ends: with
    # short trajectories most of a cluster would never be used. `_Suggest` limits how many there are.
    "TUNE_MAX_PENDING_TRIALS_PG": "1000000",
    # Payloads of our own type stand in a result; Tune would look through all of it for its metric.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
}
os.environ.update({name: value for name, value in _QUIET.items() if name not in os.environ})

import ray  # noqa: E402
from ray import tune  # noqa: E402
from ray.tune.error import TuneError  # noqa: E402
from ray.tune.search import Searcher  # noqa: E402

from ticket_search.errors import SpecError, StorageError, TicketSearchError  # noqa: E402
from ticket_search.search.job import JOB, REPORT, make_job  # noqa: E402
from ticket_search.search.preflight import cluster_address  # noqa: E402
from ticket_search.search.search import EndReport, HaltReport, LevelReport, NotStarted, Search  # noqa: E402
from ticket_search.search.trainable import TrajectoryTrainable  # noqa: E402
from ticket_search.spec.search import ResourcesSpec, SearchSpec  # noqa: E402
from ticket_search.storage.folder import Folder  # noqa: E402

#: Bytes; results are a few kB, and Ray would take a third of a laptop's memory.
_OBJECT_STORE_BYTES = 256 * 1024**2
_WATCH_SECONDS = 1.0
#: Between two looks at how large the cluster is.
_LOOK_SECONDS = 5.0


T = TypeVar("T")


class _Hook:
    """Ray pickles its hooks into snapshots of its own, which nothing is restored from: they leave the search out."""

    _search: Search

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

    def __init__(self, search: Search, run_dir: Folder, run_id: str) -> None:
        super().__init__()
        self._search = search
        self._run_dir = run_dir
        self._run_id = run_id
        self._slots = _Slots(search.spec.resources, search.spec.search.max_concurrent)

    def suggest(self, trial_id: str) -> Any:
        del trial_id
        # With nothing running Tune asks again and again, for a minute, and calls no other hook.
        self._guarded(self._search.flush_if_due, None)
        # A suggestion made before there is room for it would know less than one made when there is.
        if not self._search.is_ending and self._search.unfinished >= self._slots.count():
            return None
        suggestion = self._guarded(self._search.next, None)
        if suggestion is None:
            # As long as one runs it may come back; once told that this is the end, Ray asks no more.
            waits = self._search.unfinished and not self._search.is_ending
            return None if waits else str(Searcher.FINISHED)
        trajectory = self._search.spec.point(suggestion.values, suggestion.seed)
        return {JOB: make_job(self._search.spec, suggestion.number, trajectory, self._run_dir, self._run_id)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The callback has told the search already."""

    def save(self, checkpoint_path: str) -> None:
        """Ray's snapshots hold nothing of ours."""

    def restore(self, checkpoint_path: str) -> None:
        """Nor is anything restored from them."""


class _Slots:
    """How many trajectories fit on the cluster as it is now.

    Args:
        resources: of a trajectory.
        most: never more than this; None means as many as fit.
    """

    def __init__(self, resources: ResourcesSpec, most: int | None) -> None:
        self._resources = resources
        self._most = most
        self._count = 1
        self._look_after = 0.0
        self._spare = 0 if _ray_processes() else 1

    def count(self) -> int:
        """At least 1. One more than fits on a cluster: a trial that waits makes an autoscaler start a node."""
        now = time.monotonic()
        if now >= self._look_after:
            fitting = sum(_fitting(self._resources, node) for node in _nodes()) + self._spare
            self._count = max(1, fitting if self._most is None else min(fitting, self._most))
            self._look_after = now + _LOOK_SECONDS
        return self._count


def _nodes() -> list[dict[str, float]]:
    """What each node of the cluster has, by the name of the resource."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _fitting(resources: ResourcesSpec, node: dict[str, float]) -> int:
    """How many trajectories fit on a node that runs nothing else."""
    wanted = {"CPU": resources.cpus, "GPU": resources.gpus}
    # Ray counts in ten-thousandths.
    return min(int(node.get(name, 0) / amount + 1e-4) for name, amount in wanted.items() if amount)


class _Stop(_Hook, tune.Stopper):
    """Ray asks here, first of all, whether a trial that has reported a level is to be dropped."""

    def __init__(self, search: Search) -> None:
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

    def __init__(self, search: Search, stop: _Stop) -> None:
        self._search = search
        self._stop = stop

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        number, report = result.pop(REPORT)
        if isinstance(report, NotStarted):
            self._search.progress.stopped = True
        elif isinstance(report, HaltReport):
            self._search.halt(StorageError(report.reason))
        elif isinstance(report, EndReport):
            self._guarded(lambda: self._search.ended(number, report), None)
        elif trial.trial_id in self._stop.reasons:
            end = EndReport(status="stopped", reason=self._stop.reasons.pop(trial.trial_id))
            self._guarded(lambda: self._search.ended(number, end), None)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._guarded(lambda: self._search.started(trial.config[JOB].number), None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        # Ray gives up at once where a worker dies while it is handed a trajectory, else after `max_failures`.
        number = trial.config[JOB].number
        if trial.num_failures <= self._search.spec.search.max_failures and self._search.hand_out_again(number):
            return
        error = trial.error_file and Path(trial.error_file).read_text(errors="replace")
        end = EndReport(status="failed", reason="its worker died", error=error)
        self._guarded(lambda: self._search.ended(number, end), None)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        # Ray keeps every trial; of what it keeps of a trial's results nothing is used, and it is most of it.
        for kept in (trial.run_metadata.metric_analysis, trial.run_metadata.metric_n_steps, trial.last_result):
            kept.clear()

    def on_step_end(self, iteration: int, trials: list[Any], **_: Any) -> None:
        self._guarded(self._search.flush_if_due, None)


def _check_reachable(address: str) -> None:
    """Notice within seconds what Ray takes minutes to."""
    host, _, port = address.rpartition(":")
    if "://" in address:
        raise SpecError(f"--address {address!r}: give host:port of a cluster's head, or auto on one of its nodes")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise SpecError(f"cannot reach a Ray cluster at {address!r}: {error}") from None


def check_resources(resources: ResourcesSpec) -> None:
    """Refuse what no node of the cluster that is connected to could ever give a trajectory.

    Raises:
        SpecError: quotes what was asked for and the most there is.
    """
    nodes = _nodes()
    if not any(_fitting(resources, node) for node in nodes):
        most = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
        raise SpecError(
            f"resources: no node has {resources.cpus:g} CPUs and {resources.gpus:g} GPUs for a trajectory; "
            f"the nodes have {most}"
        )


def run_on_ray(
    search: Search, run_dir: Folder, run_id: str = "", trainable: type[TrajectoryTrainable] = TrajectoryTrainable
) -> None:
    """Run a search's trajectories on the Ray that is connected to, until there is no more or it is asked to stop.

    Args:
        search: says what to run, and is told what comes of it.
        run_dir: of the search.
        run_id: of the run.
        trainable: runs one trajectory.

    Raises:
        StorageError: the search cannot go on; what was finished is kept.
        TicketSearchError: nor without Ray, whose processes are gone.
    """
    spec = search.spec
    stop = _Stop(search)
    with tempfile.TemporaryDirectory(prefix="ticket_search_") as scratch, _quiet(), _ends_with_ray(), _one_message():
        tune.run(
            trainable,
            name="search",
            storage_path=scratch,
            search_alg=_Suggest(search, run_dir, run_id),
            stop=stop,
            callbacks=[_Watch(search, stop)],
            num_samples=-1,
            max_failures=spec.search.max_failures,
            reuse_actors=True,
            resources_per_trial={"cpu": spec.resources.cpus, "gpu": spec.resources.gpus},
            trial_dirname_creator=lambda trial: str(trial.trial_id),
            raise_on_failed_trial=False,
            verbose=0,
        )
    if search.halted:
        raise search.halted


def on_each_worker(
    function: Callable[..., T],
    calls: Sequence[tuple[Any, ...]],
    spec: SearchSpec,
    done: str,
    say: Callable[[str], None],
) -> list[T]:
    """Call a function with each arguments in Ray's workers, each with the resources of a trajectory.

    Args:
        function: of this package.
        calls: the arguments of each.
        spec: a search; a call whose worker died is made again as often as its ``max_failures``.
        done: what a call has done, for the lines that are said.
        say: told of each call that has ended.

    Raises:
        TicketSearchError: a call raised, or its workers died; no other is waited for.
    """
    resources = {"num_cpus": spec.resources.cpus, "num_gpus": spec.resources.gpus}
    remote = ray.remote(function).options(**resources, max_retries=spec.search.max_failures)
    with _ends_with_ray():
        results = [remote.remote(*arguments) for arguments in calls]
        waiting = list(results)
        try:
            while waiting:
                ended, waiting = ray.wait(waiting)
                ray.get(ended)
                say(f"{done} {len(results) - len(waiting)} of {len(results)}")
            found: list[T] = ray.get(results)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            said = str(cause) if isinstance(cause, TicketSearchError) else f"{type(cause).__name__}: {cause}"
            raise TicketSearchError(said) from error
        except ray.exceptions.RayError as error:
            raise TicketSearchError(f"{type(error).__name__}: {error}".splitlines()[0]) from error
        finally:
            for result in waiting:
                ray.cancel(result, force=True)
        return found


@contextmanager
def connect(address: str | None) -> Iterator[None]:
    """A connection to Ray: the one there is, a cluster's, or a Ray of our own on this machine for the while.

    Args:
        address: of a cluster, e.g. ``auto`` on one of its nodes; None takes ``RAY_ADDRESS``, else a Ray of our own.
    """
    if ray.is_initialized():
        yield
        return
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with _signal_handlers_kept():
        if cluster := cluster_address(address):
            _check_reachable(cluster)
            try:
                ray.init(cluster, **common)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise SpecError(
                    f"cannot connect to the Ray cluster at {cluster!r}: {error}; if it asks for a token, set "
                    "RAY_AUTH_MODE=token and the token"
                ) from error
        else:
            # Without "local", Ray would join whatever cluster happens to run on this machine.
            local: dict[str, Any] = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
            ray.init("local", object_store_memory=_OBJECT_STORE_BYTES, **local, **common)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Ray makes SIGTERM end the process with exit code 1 and nothing saved: leave the handlers as they were."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def _ends_with_ray() -> Iterator[None]:
    """Without the processes of Ray's on this machine Tune would wait forever: end, and say so.

    Raises:
        TicketSearchError: one of them is gone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    gone, over = threading.Event(), threading.Event()
    processes = _ray_processes()

    def watch() -> None:
        while not over.wait(_WATCH_SECONDS):
            if not all(_is_ray_process(pid) for pid in processes):
                gone.set()
                # A real signal ends whatever the main thread waits for.
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                return

    threading.Thread(target=watch, name="ray_watch", daemon=True).start()
    try:
        yield
    except KeyboardInterrupt:
        if not gone.is_set():
            raise
        raise TicketSearchError("Ray's own processes on this machine are gone: killed, or out of memory") from None
    finally:
        over.set()


def _ray_processes() -> set[int]:
    """The processes that a Ray of our own cannot do without; none where another's is connected to, or without /proc."""
    found = set()
    for children in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # a thread that has ended
            found |= {int(pid) for pid in children.read_text().split()}
    return {pid for pid in found if _is_ray_process(pid)}


def _is_ray_process(pid: int) -> bool:
    try:
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(") ")
    except OSError:
        return False
    return name in ("raylet", "gcs_server") and rest[0] not in "ZX"


@contextmanager
def _one_message() -> Iterator[None]:
    """Of an error in one of the hooks, such as a full disk, Tune makes a traceback: say its last line."""
    try:
        yield
    except TuneError as error:
        cause = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise TicketSearchError(cause) from error


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
