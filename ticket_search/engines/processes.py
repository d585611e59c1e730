"""An engine that runs trajectories in worker processes on this machine, without Ray."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, TypeVar

from ticket_search.config.search import SearchSpec
from ticket_search.engines import placement
from ticket_search.engines.job import Shared
from ticket_search.engines.mapped import map_data
from ticket_search.engines.place import Place
from ticket_search.engines.receive import died, next_job, receive, times
from ticket_search.engines.scratch import scratch_folder
from ticket_search.engines.worker import lanes_of
from ticket_search.engines.worker_process import WorkerDied, WorkerProcess
from ticket_search.errors import StorageError, TicketSearchError
from ticket_search.search.driver import SearchDriver

T = TypeVar("T")
#: How often to check for a stop request and write the tables while no worker reports, in seconds.
_LOOK_SECONDS = 1.0


@contextmanager
def open_processes() -> Iterator["ProcessEngine"]:
    """Open the engine; the data that its workers share are removed when the block ends."""
    with scratch_folder("processes") as scratch:
        yield ProcessEngine(scratch)


class ProcessEngine:
    """Runs trajectories in parallel in processes on this machine; see `Engine`.

    A worker that dies is replaced, and its trajectory is run again, up to ``search.max_failures`` times.

    Args:
        scratch: an empty folder on this machine.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch

    def plan(self, spec: SearchSpec) -> list[str]:
        """See `Engine`."""
        nodes = [placement.this_machine(spec.resources)]
        placement.check(spec.resources, nodes, [])
        return placement.describe(spec, nodes, [], lanes_of(spec))

    def check_storage(self, place: Place) -> None:
        """Do nothing, because no other machine is involved."""

    def share(self, data: Mapping[Any, Any]) -> Shared:
        """See `Engine`. The data are written to files in the scratch folder.

        Raises:
            StorageError: the scratch folder is full or not writable.
        """
        try:
            return map_data(data, self._scratch / f"data_{len(list(self._scratch.iterdir()))}")
        except OSError as error:
            raise StorageError(
                f"cannot write the data sets for the workers to {str(self._scratch)!r}: {error.strerror}; "
                "set TMPDIR to a folder with room for them"
            ) from error

    def run(self, search: SearchDriver, place: Place, data: Shared) -> None:
        """See `Engine`."""
        lanes = lanes_of(search.spec)
        with _workers(search.spec, search.progress.trials, lanes) as workers:
            while search.halted is None:
                waiting = [worker for worker in workers if not worker.busy]
                while open_lanes := [worker for worker in waiting if len(worker.numbers) < lanes]:
                    if (job := next_job(search, place, data)) is None:
                        break
                    search.started(job.number)
                    min(open_lanes, key=lambda worker: len(worker.numbers)).take(job)
                for worker in waiting:
                    if worker.numbers:
                        worker.advance()
                busy = [worker for worker in workers if worker.busy]
                if not busy:
                    return
                for worker in _ready(busy):
                    _take_in(worker, search)
                search.flush_if_due()

    def call(
        self,
        function: Callable[..., T],
        calls: Sequence[tuple[Any, ...]],
        spec: SearchSpec,
        done: str,
        say: Callable[[str], None],
    ) -> list[T]:
        """See `Engine`."""
        results: dict[int, T] = {}
        waiting = list(range(len(calls)))
        deaths = Counter[int]()
        with _workers(spec, len(calls), 1) as workers:
            while len(results) < len(calls):
                for worker in workers:
                    if not worker.busy and waiting:
                        number = waiting.pop(0)
                        worker.call(number, function, calls[number])
                for worker in _ready([worker for worker in workers if worker.busy]):
                    number = worker.number
                    try:
                        results[number] = worker.result()
                    except WorkerDied as death:
                        deaths[number] += 1
                        if deaths[number] > spec.search.max_failures:
                            raise TicketSearchError(f"a worker died {times(deaths[number])}: {death.how}") from None
                        worker.restart()
                        waiting.insert(0, number)
                        continue
                    say(f"{done} {len(results)} of {len(calls)}")
        return [results[number] for number in range(len(calls))]


def _take_in(worker: WorkerProcess, search: SearchDriver) -> None:
    """Pass a worker's report to the search, or handle the worker's death."""
    try:
        number, report = worker.report()
    except WorkerDied as death:
        numbers = list(worker.numbers)
        worker.restart()
        for number in numbers:
            if not search.hand_out_again(number):
                search.ended(number, died(search, death.how, death.output))
        return
    if not receive(search, number, report):
        worker.drop(number)


def _ready(workers: Sequence[WorkerProcess]) -> list[WorkerProcess]:
    """Wait up to `_LOOK_SECONDS` for workers to report or die, and return those that did."""
    found = wait([worker.connection for worker in workers], timeout=_LOOK_SECONDS)
    return [worker for worker in workers if worker.connection in found]


def _count(spec: SearchSpec, most: int | None, lanes: int) -> int:
    """Return the number of workers to start; the machine, ``search.max_concurrent`` and `most` limit it."""
    fitting = placement.fitting_on(spec.resources, placement.this_machine(spec.resources))
    limits = [limit for limit in (spec.search.max_concurrent, most) if limit is not None]
    return max(1, min([fitting, *(limit // lanes for limit in limits)]))


@contextmanager
def _workers(spec: SearchSpec, most: int | None, lanes: int) -> Iterator[list[WorkerProcess]]:
    with ExitStack() as stack:
        yield [stack.enter_context(WorkerProcess(slot, spec.resources)) for slot in range(_count(spec, most, lanes))]
