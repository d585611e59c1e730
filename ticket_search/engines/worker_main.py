"""The program that runs in a worker process; `WorkerProcess` starts it."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from ticket_search.config.user_error import headline
from ticket_search.engines.worker import Worker
from ticket_search.errors import TicketSearchError

_WATCH_SECONDS = 1.0


def main(descriptor: int, parent: int) -> None:
    """Answer the requests of the parent process until it closes the connection.

    Args:
        descriptor: the file descriptor of the connection to the parent process.
        parent: the process id of the parent; this process exits when the parent no longer exists.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=[parent], daemon=True).start()
    worker: Worker | None = None  # created when first needed, because it imports torch, which some calls do not need
    with Connection(descriptor) as connection:
        while True:
            try:
                action, *arguments = connection.recv()
            except EOFError:
                os._exit(0)  # skips the orderly shutdown of torch, which takes half a second
            if action == "call":
                connection.send(_called(*arguments))
                continue
            worker = worker or Worker()
            if action == "drop":
                if arguments[0] in worker.numbers:
                    worker.drop(*arguments)
            elif action == "take":
                worker.take(*arguments)
            else:
                connection.send(worker.advance())


def _called(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[bool, Any]:
    """Call a function, and return ``(True, its result)``, or ``(False, the error message)`` if it raised an error."""
    try:
        return True, function(*arguments)
    except TicketSearchError as error:
        return False, str(error)
    except Exception as error:
        return False, headline(error)


def _end_with(parent: int) -> None:
    """Exit once the parent process no longer exists, for example because it was killed."""
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
