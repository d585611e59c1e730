"""What many tests do: name the command, run it, count the levels that a search has trained."""

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
    """Level key -> how often that level was trained to its end."""
    events = [event for run_dir in run_dirs for event in read_events(run_dir)]
    return Counter(event["level_key"] for event in events if event["event"] == "level_finished")


def command(*arguments):
    """The words of ``ticket-search``, of this very installation."""
    return [sys.executable, "-m", "ticket_search.cli", *map(str, arguments)]


def run_command(*arguments, cwd=None, **env):
    """What the command comes to in a process of its own."""
    return subprocess.run(
        command(*arguments), cwd=cwd, env=os.environ | env, capture_output=True, text=True, timeout=240
    )


def in_process(*arguments, cwd=None, **env):
    """What the command comes to in this process, which takes no seconds to start and is left as it was.

    A search needs ``--engine inline``, or it finds the Ray of this process. Warnings are errors.
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
    """The command handles signals in its own way, and finds a user's modules in the working directory."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    path = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = path
        for number, handler in handlers.items():
            signal.signal(number, handler)
