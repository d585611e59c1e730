"""Controls a worker process: sends it requests, receives its answers, and notices when it has died."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection, Pipe
from types import TracebackType
from typing import Any

from ticket_search.config.settings import ResourcesSpec
from ticket_search.engines.job import Job
from ticket_search.engines.worker import Report
from ticket_search.errors import TicketSearchError

#: How long to wait for an idle worker to exit before killing it, in seconds.
_LEAVE_SECONDS = 2.0


class WorkerDied(Exception):
    """A worker process has ended unexpectedly.

    Attributes:
        how: a description of the exit code, or of the signal that killed the process.
        output: what the process wrote to stderr.
    """

    def __init__(self, how: str, output: str) -> None:
        super().__init__(how)
        self.how = how
        self.output = output


class WorkerProcess(AbstractContextManager["WorkerProcess"]):
    """A process that runs trajectories or one function call at a time; it exits at the end of the ``with`` block.

    It is started as a separate program rather than by `multiprocessing`: a forked child would inherit locks held by
    threads of this process, and a spawned child would run the user's script again unless the script guards against it.

    Args:
        slot: the number of the worker on this machine, from 0.
        resources: the resources of a worker. Which GPUs the worker can see depends on its slot.

    Attributes:
        connection: the connection to the process, readable once the worker has answered or died.
        number: the number of the current call; -1 without one.
        numbers: the numbers of the trajectories that the worker has.
        busy: whether the worker has not answered the last request yet.
    """

    connection: Connection

    def __init__(self, slot: int, resources: ResourcesSpec) -> None:
        self.number, self.numbers, self.busy = -1, set[int](), False
        self._environment = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        if resources.gpus:
            self._environment["CUDA_VISIBLE_DEVICES"] = ",".join(visible_gpus(slot, resources.gpus))

    def __enter__(self) -> "WorkerProcess":
        # Native code may print the reason for a crash to stderr. Keep this output off the terminal, and put it into the
        # tables instead.
        self._errors = tempfile.TemporaryFile("w+b")
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        self._errors.close()

    def restart(self) -> None:
        """Replace the process with a new one."""
        self._end()
        self._start()

    def take(self, job: Job) -> None:
        """Give a trajectory to the worker, which runs it from the next `advance` on."""
        self.numbers.add(job.number)
        self._send("take", job)

    def advance(self) -> None:
        """Tell the worker to run its trajectories until one of them reports."""
        self.busy = True
        self._send("advance")

    def report(self) -> tuple[int, Report]:
        """Wait for the next report, and return it after the number of its trajectory.

        Raises:
            WorkerDied: the process has ended.
        """
        answer: tuple[int, Report] = self._receive()
        return answer

    def drop(self, number: int) -> None:
        """Tell the worker to abandon a trajectory if it has not ended."""
        self._send("drop", number)
        self.numbers.discard(number)

    def call(self, number: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """Tell the worker to call a function, which it must be able to import."""
        self.number, self.busy = number, True
        self._send("call", function, arguments)

    def result(self) -> Any:
        """Wait for the result of the call, and return it.

        Raises:
            TicketSearchError: the function raised an error.
            WorkerDied: the process has ended.
        """
        returned, value = self._receive()
        self.number = -1
        if not returned:
            raise TicketSearchError(value)
        return value

    def _start(self) -> None:
        self.connection, theirs = Pipe()
        # Without -P, the working directory would come first on the import path, unlike in this process.
        command = [
            sys.executable,
            "-P",
            "-m",
            "ticket_search.engines.worker_main",
            str(theirs.fileno()),
            str(os.getpid()),
        ]
        self._errors.seek(0)
        self._errors.truncate()
        self._process = subprocess.Popen(  # noqa: S603
            command,
            env=os.environ | self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # Ctrl-C must reach only this process, which then ends its workers
        )
        theirs.close()

    def _end(self) -> None:
        self.connection.close()
        try:
            if self.busy:
                self._process.kill()
            self._process.wait(_LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.number, self.numbers, self.busy = -1, set(), False

    def _send(self, *message: Any) -> None:
        try:
            self.connection.send(message)
        except OSError:
            # The process has died; the next read from the connection will report it.
            return

    def _receive(self) -> Any:
        try:
            answer = self.connection.recv()
        except (EOFError, OSError):
            code = self._process.wait()
            self._errors.seek(0)
            raise WorkerDied(how_it_ended(code), self._errors.read().decode(errors="replace").strip()) from None
        self.busy = False
        return answer


def how_it_ended(code: int) -> str:
    """Describe the exit code of a process, or the signal that killed it."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal has no name
        return f"killed by signal {-code}"


def visible_gpus(slot: int, each: float) -> list[str]:
    """Return a worker's GPUs, as names for ``CUDA_VISIBLE_DEVICES``. If `each` is less than 1, workers share GPUs.

    Args:
        slot: the number of the worker, from 0.
        each: the number of GPUs per worker, either a whole number or a fraction 1/n.
    """
    known = os.environ.get("CUDA_VISIBLE_DEVICES")
    if each < 1:
        first, count = slot // round(1 / each), 1
    else:
        first, count = slot * int(each), int(each)
    places = range(first, first + count)
    return [str(place) for place in places] if known is None else [known.split(",")[place] for place in places]
