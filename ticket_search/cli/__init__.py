"""The command line: parse, call, exit code. Each command imports heavy libraries only when it is called."""

import os
import signal
from contextlib import suppress
from typing import Any, NoReturn

INTERRUPTED = 130


def main(**options: Any) -> None:
    """Run ``ticket-search``; `options` are those of `click.Command.main`.

    This module stays light: from here on a signal is a line and an exit code. Until then, and while click is imported,
    it would be a traceback.
    """
    for number in ending_signals():
        signal.signal(number, _end_at_once)
    from ticket_search.cli.commands import main as commands

    commands(**options)


def ending_signals() -> list[signal.Signals]:
    """The signals that end a command. Closing the terminal is one of them, except under `nohup`."""
    hangs_up = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else []
    return [signal.SIGINT, signal.SIGTERM, *hangs_up]


def _end_at_once(*_: object) -> NoReturn:
    with suppress(OSError):  # the terminal may have been closed
        os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)
