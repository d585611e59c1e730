"""The command line: parses arguments, calls the library, sets the exit code.

Each command imports heavy libraries only when it is called.
"""

import os
import signal
from contextlib import suppress
from typing import Any, NoReturn

from ticket_search.cli.streams import prepare_streams

INTERRUPTED = 130


def main(**options: Any) -> None:
    """Run ``ticket-search``; `options` are passed to `click.Command.main`.

    The signal handlers are installed before click is imported, so that an interrupt during that import prints one line
    instead of a traceback. This module must therefore import nothing heavy.
    """
    for number in ending_signals():
        signal.signal(number, _end_at_once)
    prepare_streams()
    from ticket_search.cli.commands import main as commands

    commands(**options)


def ending_signals() -> list[signal.Signals]:
    """Return the signals that end a command. SIGHUP (the terminal was closed) is one of them, except under `nohup`."""
    hangs_up = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else []
    return [signal.SIGINT, signal.SIGTERM, *hangs_up]


def _end_at_once(*_: object) -> NoReturn:
    with suppress(OSError):  # the terminal may have been closed
        os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)
