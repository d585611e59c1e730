"""A search run for somebody who waits for it: the display, the signals, what is said, the exit code."""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ticket_search.cli.options import find_user_modules
from ticket_search.errors import SpecError, TicketSearchError
from ticket_search.storage.folder import is_remote, open_folder

if TYPE_CHECKING:
    from rich.console import Console

    from ticket_search.config.search import SearchSpec

FAILED = 3
INTERRUPTED = 130
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
    """Run a search and say what came of it.

    Args:
        spec: the search.
        directory: where its results go.
        address: of a Ray cluster.
        engine: where trajectories run.
        entries: what its trajectories find in the level store.
        again: the command that goes on with it, if not `resume`.

    Returns:
        The exit code.
    """
    from ticket_search.analysis.tickets import tickets as sparsest
    from ticket_search.cli.display import Display, print_tickets
    from ticket_search.launch.run import run_search
    from ticket_search.results.reading import load_results

    find_user_modules()
    again = again or resume_command(directory, spec, engine)
    shown = console()
    display = Display(spec, shown)
    interrupted = f"interrupted; what was finished is kept. Go on with: {again}"
    for number in (signal.SIGTERM, signal.SIGINT):
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
    except (KeyboardInterrupt, SystemExit):  # the latter from Ray's own handler of SIGTERM, while it starts
        if display.has_begun:
            click.echo(interrupted, err=True)
        else:
            click.echo("interrupted before anything was started", err=True)
        sys.exit(INTERRUPTED)
    except TicketSearchError as error:
        if isinstance(error, SpecError):
            raise
        click.echo(f"error: the search had to stop, and what was finished is kept: {error}", err=True)
        click.echo(f"Once that is mended, go on with: {again}", err=True)
        sys.exit(error.exit_code)
    if progress.stopped:
        click.echo(f"stopped as asked; what was finished is kept. Go on with: {again}", err=True)
        sys.exit(INTERRUPTED)
    if progress.exhausted:
        click.echo(f"the space is exhausted: its {progress.done} trajectories have all been run")
    more = f"ticket-search tickets {shlex.quote(directory)}"
    tables = str(open_folder(directory) / "levels") if is_remote(directory) else f"{directory}/levels"
    print_tickets(shown, sparsest(load_results(directory), spec.space), spec, more=more)
    click.echo(f"results: {directory} (pd.read_parquet('{tables}'))")
    if progress.counts["failed"]:
        click.echo(
            f"{progress.counts['failed']} of {progress.done} trajectories failed; why is in the column error of "
            f"{directory}/trajectories",
            err=True,
        )
        return FAILED
    return 0


def console() -> "Console":
    """Where tables are printed."""
    from rich.console import Console

    # Into a file or a pipe, tables are not squeezed, however many fields were searched.
    return Console() if sys.stdout.isatty() else Console(width=1000)


def _interrupt(message: str, number: int, frame: object) -> NoReturn:
    """Of the first signal make an exception; leave the second to end the process at once.

    A server that is silent may hold up what is left to be done: after nine seconds it is left undone.
    """
    del frame
    late = threading.Timer(_SECONDS_TO_END, _end_late, [message])
    late.daemon = True
    late.start()
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _end_at_once)
    raise KeyboardInterrupt(signal.Signals(number).name)


def _end_late(message: str) -> NoReturn:
    os.write(2, f"{message}\n".encode())
    os._exit(INTERRUPTED)


def _end_at_once(*_: object) -> NoReturn:
    os.write(2, b"interrupted again: ended at once; `ticket-search resume` goes on from what was finished\n")
    os._exit(INTERRUPTED)


def this_command() -> str:
    """The command that is running, as it was typed."""
    return shlex.join(["ticket-search", *sys.argv[1:]])


def resume_command(directory: str, spec: "SearchSpec", engine: str = "ray") -> str:
    """The command that resumes a search."""
    from ticket_search.config.imports import user_code

    options = (f" --engine {engine}" if engine != "ray" else "") + (" --allow-code" if user_code(spec) else "")
    return f"ticket-search resume {shlex.quote(directory)}{options}"
