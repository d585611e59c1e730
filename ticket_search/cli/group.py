"""The command `ticket-search`: which commands there are, and what becomes of an error."""

import signal
import sys
import threading
from pathlib import Path
from typing import Any

import click

from ticket_search.cli.running import INTERRUPTED
from ticket_search.errors import SpecError, TicketSearchError


class _Commands(click.Group):
    """Turns the errors that a user may see into one message and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        if threading.current_thread() is threading.main_thread():
            # A shell has a job in the background ignore SIGINT.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.default_int_handler)
        try:
            _check_working_directory()
            return super().invoke(ctx)
        except TicketSearchError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(INTERRUPTED)


def _check_working_directory() -> None:
    """Paths are made absolute everywhere, and torch (MKL) aborts the process where there is no working directory."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise SpecError("the working directory has been deleted; change into one that exists") from None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="ticket_search")
def main() -> None:
    """Search for winning lottery tickets: many iterative-magnitude-pruning trajectories, in parallel, on Ray."""
