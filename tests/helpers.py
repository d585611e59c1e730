"""Helpers for many tests: build the command line, run it, count the levels that a search has trained."""

import contextlib
import os
import signal
import subprocess
import sys
from collections import Counter

import pytest
from click.testing import CliRunner

from ticket_search.cli import main
from ticket_search.results.events import read_events


def finished_levels(*run_dirs):
    """Level key -> how often training of that level finished."""
    events = [event for run_dir in run_dirs for event in read_events(run_dir)]
    return Counter(event["level_key"] for event in events if event["event"] == "level_finished")


def command(*arguments):
    """The command line of ``ticket-search``, as installed for this Python."""
    return [sys.executable, "-m", "ticket_search.cli", *map(str, arguments)]


def run_command(*arguments, cwd=None, **env):
    """Run the command in a subprocess."""
    return subprocess.run(
        command(*arguments), cwd=cwd, env=os.environ | env, capture_output=True, text=True, timeout=240
    )


def in_process(*arguments, cwd=None, **env):
    """Run the command in this process, which saves the seconds of starting, and undo its changes to the process.

    A search needs ``--engine inline``, or it would use the Ray of this process. Warnings are errors.
    """
    arguments = [str(argument) for argument in arguments]
    with _process_left_as_it_was(), pytest.MonkeyPatch.context() as patch:
        if cwd is not None:
            patch.chdir(cwd)
        said = CliRunner().invoke(main, arguments, env=env)
    if said.exception and not isinstance(said.exception, SystemExit):
        raise said.exception
    return subprocess.CompletedProcess(arguments, said.exit_code, said.stdout, said.stderr)


@contextlib.contextmanager
def _process_left_as_it_was():
    """The command sets signal handlers and adds the working directory to the import path."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    path = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = path
        for number, handler in handlers.items():
            signal.signal(number, handler)
