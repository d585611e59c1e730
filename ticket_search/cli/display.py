"""Shows the progress of a search: a live display on a terminal, one line per trajectory elsewhere."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import pandas as pd
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ticket_search.analysis.measure import final_column
from ticket_search.analysis.tickets import FIGURES
from ticket_search.config.search import SearchSpec
from ticket_search.config.space import dotted
from ticket_search.results.schema import column
from ticket_search.search.reports import Progress

#: The minimum terminal width for showing every column of the table of tickets.
_WIDE = 120
#: Columns that are not shown on narrower terminals.
_FOR_WIDE = ("compression", "test_accuracy", "dense_test_accuracy", "test_metric", "dense_test_metric")
#: The fields that a trajectory's line always shows. The other searched fields follow them.
_NAMED = ("pruning_rate", "strategy", "rewind_iteration", "seed")


class Display:
    """Shows the progress of a search, which calls this object whenever a trajectory ends.

    Args:
        spec: the search.
        console: the console to print on. If it is a terminal, it shows the live display.
    """

    def __init__(self, spec: SearchSpec, console: Console) -> None:
        self._spec = spec
        self._console = console
        self._progress = Progress(trials=spec.search.trials)
        self._done_before = 0
        self._has_begun = False
        self._started = time.monotonic()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the live display until the block ends, if the console is a terminal."""
        if not self._console.is_terminal:
            yield
            return
        with Live(get_renderable=self._render, console=self._console, refresh_per_second=4, transient=True):
            yield

    def begin(self, progress: Progress) -> None:
        """Start the display; `progress` is read again at every refresh."""
        self._progress = progress
        self._has_begun = True
        self._done_before = progress.done
        self._started = time.monotonic()

    @property
    def has_begun(self) -> bool:
        """Whether the search has started."""
        return self._has_begun

    def say(self, notice: str) -> None:
        """Print a notice for the user, to stderr if there is no live display."""
        if self._console.is_terminal:
            self._console.print(Text(notice))
        else:
            print(notice, file=sys.stderr, flush=True)  # noqa: T201

    def __call__(self, progress: Progress, row: dict[str, Any]) -> None:
        """Show that a trajectory has ended; `row` is its row of the table `trajectories`."""
        if not self._console.is_terminal:
            print(_line(progress, row, self._spec), flush=True)  # noqa: T201
        elif row["status"] == "failed":
            self._console.print(Text(f"{row['trajectory_id']} failed: {row['reason']}", style="red"))

    def _render(self) -> Group:
        progress = self._progress
        counts = "  ".join(f"{name} {count}" for name, count in progress.counts.items() if count or name == "running")
        done = f"{progress.done}/{progress.trials if progress.trials is not None else '?'}"
        lines: list[RenderableType] = [
            Text.assemble((self._spec.name, "bold"), f"  {done} trajectories  ", (counts, "dim")),
            Columns([ProgressBar(total=progress.trials or 1, completed=progress.done, width=60), Text(self._pace())]),
            Text(f"best ticket so far: {_ticket(progress.best)}" if progress.best else "no matching ticket so far"),
        ]
        return Group(*lines)

    def _pace(self) -> str:
        elapsed = time.monotonic() - self._started
        done = self._progress.done - self._done_before
        pace = f"{self._progress.levels / elapsed * 60:.0f} levels a minute"
        if not done or self._progress.trials is None:
            return pace
        left = (self._progress.trials - self._progress.done) * elapsed / done
        return f"{pace}, {done / elapsed * 60:.1f} trajectories a minute, about {_duration(left)} left"


def print_tickets(console: Console, tickets: pd.DataFrame, spec: SearchSpec, *, most: int = 10, more: str = "") -> None:
    """Print a table of tickets with the fields that the search varied.

    Args:
        console: the console to print on. A narrow terminal shows fewer columns.
        tickets: the table from `analysis.tickets`.
        spec: the search that found the tickets.
        most: the maximum number of tickets to print.
        more: the command that prints all tickets.
    """
    if tickets.empty:
        console.print("No ticket matches its dense network.")
        return
    console.print("[bold]Sparsest matching tickets[/bold]")
    table = Table(box=None, pad_edge=False, collapse_padding=console.width < _WIDE, header_style="bold")
    shown = {"ticket", "seed", *map(column, spec.space), *FIGURES}
    shown |= {"trajectory.ticket" for name in spec.space if dotted(name) == "pruning.ticket"}
    columns = [name for name in tickets.columns if name in shown]
    left_out = [name for name in columns if name in _FOR_WIDE and console.width < _WIDE]
    columns = [name for name in columns if name not in left_out]
    for name in columns:
        justify: Literal["left", "right"] = "left" if name == "ticket" else "right"
        table.add_column(name.replace("_", "\n"), justify=justify, vertical="bottom", no_wrap=True)
    for row in tickets.head(most).to_dict("records"):
        table.add_row(*(_cell(row[name]) for name in columns))
    console.print(table)
    if left_out:
        advice = f"widen the terminal to {_WIDE} columns, or use --json: {more} --json"
        console.print(f"not shown: {', '.join(left_out)}; {advice}", highlight=False, soft_wrap=True)
    if len(tickets) > most:
        console.print(f"and {len(tickets) - most} more: {more}", highlight=False)


def print_arms(console: Console, table: pd.DataFrame, fields: Sequence[str]) -> None:
    """Print a table that compares tickets, dense networks and controls, with intervals in brackets.

    Args:
        console: the console to print on.
        table: the table from `analysis.confirmation.confirm_table` or `analysis.transfer.transfer_table`.
        fields: the columns that identify a configuration.
    """
    shown = Table(box=None, pad_edge=False, collapse_padding=True, header_style="bold")
    measured = final_column(table)
    title = measured.replace("_", " ")
    for name in (*fields, "arm", "density", "seeds", title, "over dense", "early stop", "speed", "verdict"):
        shown.add_column(name.replace("_", "\n"), justify="right", vertical="bottom", no_wrap=True)
    for row in table.to_dict("records"):
        cells = [_cell(row[name]) for name in fields]
        cells += [row["arm"], f"{row['density']:.4f}", str(row["seeds"]), _between(row, measured, ".4f")]
        cells += [_between(row, f"{measured}_gain", "+.4f") if row["arm"] != "dense" else ""]
        cells += [_between(row, "early_stop_iteration", ".0f"), _between(row, "speed", ".2f"), row["verdict"] or ""]
        shown.add_row(*cells)
    console.print(shown)


def print_stability(console: Console, table: pd.DataFrame) -> None:
    """Print the error barriers between copies of a ticket and between copies of the dense network.

    Args:
        console: the console to print on.
        table: the table from `analysis.stability.stability_table`.
    """
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "rewind", "density", "val error", "barrier", "test error", "barrier", "verdict"):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in table.to_dict("records"):
        figures = (f"{row[name]:.4f}" for name in ("val_error", "val_barrier", "test_error", "test_barrier"))
        shown.add_row(row["arm"], str(row["rewind_iteration"]), f"{row['density']:.4f}", *figures, row["verdict"])
    console.print(shown)


def _between(row: dict[Any, Any], name: str, form: str) -> str:
    mean, low, high = (format(row[key], form) for key in (name, f"{name}_low", f"{name}_high"))
    return f"{mean} [{low}, {high}]".replace("[", "\\[")


def _line(progress: Progress, row: dict[str, Any], spec: SearchSpec) -> str:
    trials = "?" if progress.trials is None else str(progress.trials)
    head = f"{progress.done:>{len(trials)}}/{trials} {row['status']:<9} {row['trajectory_id']}"
    configuration = (
        f"rate {row['pruning_rate']:.3g} {row['strategy']} rewind {row['rewind_iteration']} seed {row['seed']}"
    )
    others = (f" {name} {_cell(row[column(name)])}" for name in spec.space if column(name) not in _NAMED)
    density = row["sparsest_matching_density"]
    best = "no matching ticket" if density is None else f"matches to density {density:.4f} ({1 / density:.1f}x)"
    line = f"{head}  {configuration}{''.join(others)}  {row['levels']} levels, {best}"
    return f"{line}  ({row['reason']})" if row["reason"] else line


def _ticket(row: dict[str, Any]) -> str:
    return (
        f"{row['trajectory_id']}/{row['level']}  density {row['density']:.4f} ({row['compression']:.1f}x)  "
        f"validation {row['metric']} {row['val_metric']:.4f}, dense {row['dense_val_metric']:.4f}"
    )


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
