"""An engine that runs trajectories in this process, for debuggers, notebooks and tests."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from ticket_search.config.search import SearchSpec
from ticket_search.config.user_error import headline
from ticket_search.engines import placement
from ticket_search.engines.job import Shared
from ticket_search.engines.place import Place
from ticket_search.engines.receive import next_job, receive
from ticket_search.engines.worker import Worker, lanes_of
from ticket_search.errors import TicketSearchError
from ticket_search.search.driver import SearchDriver

T = TypeVar("T")


class InlineEngine:
    """Runs everything in this process, so that errors keep their full tracebacks; see `Engine`."""

    def plan(self, spec: SearchSpec) -> list[str]:
        """Describe the plan: everything runs in this process."""
        placement.check(spec.resources, [placement.this_machine(spec.resources)], [])
        lanes = lanes_of(spec)
        number = "1 trajectory at a time" if lanes == 1 else f"{lanes} trajectories at a time, trained together"
        return [f"plan: {number} in this process, with {placement.share(spec.resources)}"]

    def check_storage(self, place: Place) -> None:
        """Do nothing, because no other machine is involved."""

    def share(self, data: Mapping[Any, Any]) -> Shared:
        """Return a handle to the data, which stay in this process."""
        return _InMemory(data)

    def run(self, search: SearchDriver, place: Place, data: Shared) -> None:
        """See `Engine`."""
        with _process_left_as_it_was():
            worker, lanes = Worker(), lanes_of(search.spec)
            try:
                while True:
                    while len(worker.numbers) < lanes and (job := next_job(search, place, data)) is not None:
                        search.started(job.number)
                        worker.take(job)
                    if not worker.numbers or search.halted:
                        return
                    number, report = worker.advance()
                    if not receive(search, number, report) and number in worker.numbers:
                        worker.drop(number)
            finally:
                worker.close()

    def call(
        self,
        function: Callable[..., T],
        calls: Sequence[tuple[Any, ...]],
        spec: SearchSpec,
        done: str,
        say: Callable[[str], None],
    ) -> list[T]:
        """See `Engine`."""
        del spec
        results: list[T] = []
        with _process_left_as_it_was():
            for arguments in calls:
                try:
                    results.append(function(*arguments))
                except TicketSearchError:
                    raise
                except Exception as error:
                    raise TicketSearchError(headline(error)) from error
                say(f"{done} {len(results)} of {len(calls)}")
        return results


class _InMemory:
    """A handle to data in this process. It is hashed by identity, so that caches do not have to hash the data."""

    def __init__(self, data: Mapping[Any, Any]) -> None:
        self._data = data

    def __call__(self) -> Mapping[Any, Any]:
        return self._data


@contextmanager
def _process_left_as_it_was() -> Iterator[None]:
    """When the block ends, restore the number of torch threads, the import path and the working directory."""
    paths, directory = list(sys.path), Path.cwd()
    import torch

    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        sys.path[:] = paths
        with suppress(OSError):  # the directory may have been deleted
            os.chdir(directory)
