"""A worker process as its parent sees it: what it is asked to do, what it answers, and that it may die."""

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

#: For an idle worker to leave by itself.
_LEAVE_SECONDS = 2.0


class WorkerDied(Exception):
    """A worker process is gone.

    Attributes:
        how: its exit code, or the signal that killed it, in a few words.
        output: what it wrote to its standard error.
    """

    def __init__(self, how: str, output: str) -> None:
        super().__init__(how)
        self.how = how
        self.output = output


class WorkerProcess(AbstractContextManager["WorkerProcess"]):
    """A process that runs one trajectory, or makes one call, at a time; it ends with the ``with`` block.

    It is started as a program of its own and not forked or spawned by `multiprocessing`: a fork would copy the locks of
    this process's threads, and a spawned child runs the user's script again, as far as no guard in it forbids.

    Args:
        slot: counts the workers of this machine from 0.
        resources: of a trajectory; the slot decides which of the GPUs the worker sees.

    Attributes:
        connection: ready to be read once the worker has answered or died.
        number: of the job or the call that it is busy with; -1 where it is idle.
    """

    connection: Connection

    def __init__(self, slot: int, resources: ResourcesSpec) -> None:
        self.number = -1
        self._environment = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        if resources.gpus:
            self._environment["CUDA_VISIBLE_DEVICES"] = ",".join(visible_gpus(slot, resources.gpus))

    @property
    def busy(self) -> bool:
        """Whether it has been asked for something that it has not answered, or runs a trajectory."""
        return self.number >= 0

    def __enter__(self) -> "WorkerProcess":
        # What native code writes as it crashes is worth keeping; a terminal is not the place for it.
        self._errors = tempfile.TemporaryFile("w+b")
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        self._errors.close()

    def restart(self) -> None:
        """Replace the process."""
        self._end()
        self._start()

    def take(self, job: Job) -> None:
        """Take up a trajectory, and run it until there is something to report."""
        self.number = job.number
        self._send("take", job)

    def advance(self) -> None:
        """Run the trajectory until there is something more to report."""
        self._send("advance")

    def report(self) -> Report:
        """What the trajectory has to report; waits for it.

        Raises:
            WorkerDied: the process is gone.
        """
        answer: Report = self._receive()
        return answer

    def drop(self) -> None:
        """Give up the trajectory, if it has not ended."""
        self._send("drop", self.number)
        self.number = -1

    def call(self, number: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """Call a function that can be imported."""
        self.number = number
        self._send("call", function, arguments)

    def result(self) -> Any:
        """What the call has returned; waits for it.

        Raises:
            TicketSearchError: it raised.
            WorkerDied: the process is gone.
        """
        returned, value = self._receive()
        self.number = -1
        if not returned:
            raise TicketSearchError(value)
        return value

    def _start(self) -> None:
        self.connection, theirs = Pipe()
        # -P: modules of the working directory come last, as in this process.
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
            start_new_session=True,  # the interrupt of a terminal is for the search, which ends its workers
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
        self.number = -1

    def _send(self, *message: Any) -> None:
        try:
            self.connection.send(message)
        except OSError:
            # It has died: reading from it says so, to whoever waits for its answer.
            return

    def _receive(self) -> Any:
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            code = self._process.wait()
            self._errors.seek(0)
            raise WorkerDied(how_it_ended(code), self._errors.read().decode(errors="replace").strip()) from None


def how_it_ended(code: int) -> str:
    """The exit code of a process, or the signal that killed it, in words."""
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


def visible_gpus(slot: int, each: float) -> list[str]:
    """The GPUs of a worker, as ``CUDA_VISIBLE_DEVICES`` names them: its own ones, or one that it shares.

    Args:
        slot: counts the workers from 0.
        each: GPUs of a worker: a whole number, or a share 1/n.
    """
    known = os.environ.get("CUDA_VISIBLE_DEVICES")
    if each < 1:
        first, count = slot // round(1 / each), 1
    else:
        first, count = slot * int(each), int(each)
    places = range(first, first + count)
    return [str(place) for place in places] if known is None else [known.split(",")[place] for place in places]
