"""Runs a search for the command line: handles its display, signals, messages and exit code."""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ticket_search.cli import INTERRUPTED, ending_signals
from ticket_search.cli.faults import explain
from ticket_search.cli.options import find_user_modules
from ticket_search.cli.streams import outlive_audience
from ticket_search.errors import SpecError, TicketSearchError
from ticket_search.storage.folder import is_remote, open_folder

if TYPE_CHECKING:
    from rich.console import Console

    from ticket_search.config.search import SearchSpec

FAILED = 3
#: How long a search may take to end after SIGTERM, in seconds. Batch systems send SIGKILL at least ten seconds later.
_SECONDS_TO_END = 9.0


def run_for_user(
    spec: "SearchSpec",
    directory: str,
    address: str | None,
    *,
    engine: str = "ray",
    entries: Mapping[str, Any] | None = None,
    again: str | None = None,
) -> int:
    """Run a search and print its results.

    Args:
        spec: the search.
        directory: the run directory.
        address: the address of a Ray cluster.
        engine: where trajectories run: ``inline``, ``processes`` or ``ray``.
        entries: entries to put into the level store before the search starts.
        again: the command that resumes the search; ``ticket-search resume`` by default.

    Returns:
        The exit code.
    """
    from ticket_search.cli.display import Display
    from ticket_search.launch.run import run_search

    outlive_audience()
    find_user_modules()
    again = again or resume_command(directory, spec, engine)
    shown = console()
    display = Display(spec, shown)
    interrupted = f"interrupted; finished work is kept. Resume with: {again}"
    for number in ending_signals():
        signal.signal(number, partial(_interrupt, interrupted))
    try:
        with display.shown():
            progress = run_search(
                spec,
                directory,
                engine=engine,
                address=address,
                listener=display,
                on_start=display.begin,
                entries=entries or {},
                say=display.say,
            )
    except (KeyboardInterrupt, SystemExit):  # SystemExit comes from Ray's SIGTERM handler while Ray starts
        click.echo(interrupted if display.has_begun else "interrupted before anything was started", err=True)
        sys.exit(INTERRUPTED)
    except SpecError:
        raise
    except Exception as error:
        if not display.has_begun:
            raise
        click.echo(f"error: the search had to stop; finished work is kept: {explain(error)}", err=True)
        click.echo(f"Once this is fixed, resume with: {again}", err=True)
        sys.exit(error.exit_code if isinstance(error, TicketSearchError) else 1)
    if progress.stopped:
        click.echo(f"stopped on request; finished work is kept. Resume with: {again}", err=True)
        sys.exit(INTERRUPTED)
    if progress.exhausted:
        click.echo(f"the search space is exhausted: all of its {progress.done} trajectories have run")
    return _print_results(spec, directory, shown, progress.counts["failed"], progress.done)


def _print_results(spec: "SearchSpec", directory: str, shown: "Console", failed: int, done: int) -> int:
    from ticket_search.analysis.tickets import tickets as sparsest
    from ticket_search.cli.display import print_tickets
    from ticket_search.results.reading import load_results

    more = f"ticket-search tickets {shlex.quote(directory)}"
    tables = str(open_folder(directory) / "levels") if is_remote(directory) else f"{directory}/levels"
    print_tickets(shown, sparsest(load_results(directory), spec.space), spec, more=more)
    click.echo(f"results: {directory} (pd.read_parquet('{tables}'))")
    if failed:
        click.echo(
            f"{failed} of {done} trajectories failed; their tracebacks are in the column error of "
            f"{directory}/trajectories",
            err=True,
        )
        return FAILED
    return 0


def console() -> "Console":
    """Return the console to print tables on."""
    from rich.console import Console

    # Files and pipes have no width, so every column is printed, however many fields were searched.
    return Console() if sys.stdout.isatty() else Console(width=1000)


def _interrupt(message: str, number: int, frame: object) -> NoReturn:
    """Turn the first signal into an exception, and let a second signal end the process at once.

    If a storage server does not respond and blocks the last writes, the process exits without them after nine seconds.
    """
    del frame
    late = threading.Timer(_SECONDS_TO_END, _end_late, [message])
    late.daemon = True
    late.start()
    for each in ending_signals():
        signal.signal(each, _end_at_once)
    raise KeyboardInterrupt(signal.Signals(number).name)


def _end_late(message: str) -> NoReturn:
    _write(message)
    os._exit(INTERRUPTED)


def _end_at_once(*_: object) -> NoReturn:
    _write("interrupted again: exiting at once; `ticket-search resume` continues from the finished levels")
    os._exit(INTERRUPTED)


def _write(line: str) -> None:
    with suppress(OSError):  # after SIGHUP the terminal is closed
        os.write(2, f"{line}\n".encode())


def this_command() -> str:
    """Return the command line that started this process."""
    return shlex.join(["ticket-search", *sys.argv[1:]])


def resume_command(directory: str, spec: "SearchSpec", engine: str = "ray") -> str:
    """Return the command that resumes a search."""
    from ticket_search.config.imports import user_code

    options = (f" --engine {engine}" if engine != "ray" else "") + (" --allow-code" if user_code(spec) else "")
    return f"ticket-search resume {shlex.quote(directory)}{options}"
