"""Helpers shared by many tests: they run ``ticket-search`` and count the levels that a search has trained."""

import contextlib
import os
import signal
import subprocess
import sys
from collections import Counter

import pytest
from click import ClickException
from click.testing import CliRunner

from ticket_search.cli.commands import main
from ticket_search.errors import TicketSearchError
from ticket_search.results.events import read_events


def finished_levels(*run_dirs):
    """Return how many times each level finished training, by level key."""
    events = [event for run_dir in run_dirs for event in read_events(run_dir)]
    return Counter(event["level_key"] for event in events if event["event"] == "level_finished")


def command(*arguments):
    """Return the argument list that runs ``ticket-search`` with this Python installation."""
    return [sys.executable, "-m", "ticket_search.cli", *map(str, arguments)]


def run_command(*arguments, cwd=None, **env):
    """Run ``ticket-search`` in a new process; return a `CompletedProcess`."""
    return subprocess.run(
        command(*arguments), cwd=cwd, env=os.environ | env, capture_output=True, text=True, timeout=240
    )


def in_process(*arguments, cwd=None, **env):
    """Run ``ticket-search`` in this process, which saves seconds of startup; return a `CompletedProcess`.

    Afterwards, the signal handlers and the import path are restored. A search needs ``--engine inline``; otherwise, it
    would use this process's Ray cluster. Warnings are errors, as in all tests. An unexpected exception propagates to
    the test, whereas the real command would print it in one line and exit with code 1.
    """
    arguments = [str(argument) for argument in arguments]
    with _restored_process(), pytest.MonkeyPatch.context() as patch:
        if cwd is not None:
            patch.chdir(cwd)
        said = CliRunner().invoke(main, arguments, env=env)
    bug = said.exception.__context__ if said.exception else None
    if bug is not None and not isinstance(bug, TicketSearchError | KeyboardInterrupt | ClickException):
        raise bug
    return subprocess.CompletedProcess(arguments, said.exit_code, said.stdout, said.stderr)


@contextlib.contextmanager
def _restored_process():
    """Restore the signal handlers and the import path, which the command changes, at the end of the block."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    path = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = path
        for number, handler in handlers.items():
            signal.signal(number, handler)
