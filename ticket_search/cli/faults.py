"""Error messages of the command line, and ``--debug``, which adds the traceback."""

import traceback
from pathlib import Path
from typing import Any

import click

from ticket_search.config.user_error import headline
from ticket_search.errors import Fault, TicketSearchError

_PACKAGE = str(Path(__file__).parents[1])
_DEBUG = "ticket_search.debug"


def debug_option() -> click.Option:
    """Return the option ``--debug``. The group and all commands have it, so it may precede or follow the command."""

    def note(context: click.Context, _: click.Parameter, value: bool) -> None:
        if value:
            context.meta[_DEBUG] = True  # click shares `meta` between the contexts of a group and its command

    text = "Show the traceback of an error."
    return click.Option(["--debug"], is_flag=True, expose_value=False, callback=note, help=text)


def explain(error: Exception) -> str:
    """Return the message of an error; for a bug, return one line with the type of the error and its source line.

    With ``--debug``, also print the traceback.
    """
    context = click.get_current_context(silent=True)
    debug = bool(context and context.meta.get(_DEBUG))
    if debug:
        click.echo("".join(traceback.format_exception(error)).rstrip(), err=True)
    if isinstance(error, TicketSearchError) and not isinstance(error, Fault):
        return str(error)
    if isinstance(error, MemoryError):
        return "the system is out of memory; stop other programs, or use a smaller network or data set"
    if isinstance(error, OSError):  # caused by the system, for example by a full /tmp
        return headline(error)
    line = str(error) if isinstance(error, Fault) else _in_one_line(error)
    return f"{line}. This is a bug in ticket_search" + ("" if debug else "; run again with --debug to see a traceback")


def _in_one_line(error: Exception) -> str:
    frames: Any = traceback.extract_tb(error.__traceback__)
    here = [frame for frame in frames if frame.filename.startswith(_PACKAGE)] or frames
    return f"{headline(error)} ({here[-1].filename}:{here[-1].lineno})" if here else headline(error)
