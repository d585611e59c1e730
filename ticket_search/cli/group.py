"""The command group `ticket-search`, and its handling of errors and signals."""

import signal
import sys
import threading
from pathlib import Path
from typing import Any

import click

from ticket_search.cli import INTERRUPTED, ending_signals
from ticket_search.cli.faults import debug_option, explain
from ticket_search.cli.streams import is_of_stdout
from ticket_search.errors import SpecError, TicketSearchError
from ticket_search.storage.folder import reason_of


class _Commands(click.Group):
    """A command group that turns every error into one message and an exit code."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command, and give it the option ``--debug``."""
        cmd.params.append(debug_option())
        super().add_command(cmd, name)

    def main(self, *args: Any, **options: Any) -> Any:
        """Run a command; see `click.Command.main`."""
        try:
            return super().main(*args, **options)
        except OSError as error:
            if not is_of_stdout(error):
                raise
            click.echo(f"error: cannot write to stdout: {reason_of(error)}", err=True)
            sys.exit(1)

    def invoke(self, ctx: click.Context) -> Any:
        if threading.current_thread() is threading.main_thread():
            # SIGINT needs a handler too, because a shell starts background jobs with SIGINT ignored.
            for number in ending_signals():
                signal.signal(number, signal.default_int_handler)
        try:
            _check_working_directory()
            return super().invoke(ctx)
        except TicketSearchError as error:
            click.echo(f"error: {explain(error)}", err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(INTERRUPTED)
        except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
            raise  # click handles these itself: usage errors, --help, a closed pipe
        except Exception as error:
            if isinstance(error, OSError) and is_of_stdout(error):
                raise
            click.echo(f"error: {explain(error)}", err=True)
            sys.exit(1)


def _check_working_directory() -> None:
    """Check that the working directory exists: relative paths depend on it, and torch (MKL) aborts without it."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise SpecError("the working directory has been deleted; change into one that exists") from None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="ticket_search")
def main() -> None:
    """Search for winning lottery tickets by running iterative-magnitude-pruning trajectories in parallel on Ray."""


main.params.append(debug_option())
