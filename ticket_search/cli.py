"""The command line: parse, call, exit code. Whatever is heavy is imported by the command that needs it."""

import os
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ticket_search.errors import SpecError, TicketSearchError

if TYPE_CHECKING:
    from rich.console import Console

    from ticket_search.spec.search import SearchSpec

FAILED = 3
INTERRUPTED = 130
_SHIPPED = Path(__file__).parent / "search_spaces"


class _Directory(click.Path):
    """A local directory. A URL would otherwise quietly become a folder named ``s3:``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if "://" in str(value):
            self.fail(f"{str(value)!r} is not a local directory; object storage is not supported yet", param, ctx)
        return super().convert(value, param, ctx)


_DIRECTORY = _Directory(path_type=Path, file_okay=False)


class _Commands(click.Group):
    """Turns the errors that a user may see into one message and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except TicketSearchError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(error.exit_code)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="ticket_search")
def main() -> None:
    """Search for winning lottery tickets: many iterative-magnitude-pruning trajectories, in parallel, on Ray."""


@main.command()
@click.argument("space")
@click.option("--output", type=_DIRECTORY, help="Run directory.  [default: runs/<name of the search>]")
@click.option("--trials", type=click.IntRange(min=1), help="Trajectories to run, instead of search.trials.")
@click.option(
    "--data-dir", type=_DIRECTORY, envvar="TICKET_SEARCH_DATA_DIR", help="Where data sets lie.  [default: data]"
)
@click.option(
    "--store", type=_DIRECTORY, help="A level store shared with other searches.  [default: in the run directory]"
)
@click.option("--address", help="A Ray cluster to run on, e.g. auto.  [default: RAY_ADDRESS, else this machine]")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Set any key of SPACE; may be repeated.")
def run(
    space: str,
    output: Path | None,
    trials: int | None,
    data_dir: Path | None,
    store: Path | None,
    address: str | None,
    settings: tuple[str, ...],
) -> None:
    """Run the search SPACE: a YAML file, or the name of a search that ships, such as digits.

    Run again on the same directory, it goes on from where it stopped.
    """
    from ticket_search.spec.loading import load_search

    if trials is not None:
        settings = (*settings, f"search.trials={trials}")
    spec = load_search(_space_path(space), settings)
    places = {"data_dir": data_dir, "store": store}
    spec = spec.model_copy(update={name: str(path.absolute()) for name, path in places.items() if path})
    _run(spec, output or Path("runs") / spec.name, address)


@main.command()
@click.argument("directory", type=_DIRECTORY)
@click.option("--trials", type=click.IntRange(min=1), help="Raise the number of trajectories.")
@click.option("--address", help="A Ray cluster to run on, e.g. auto.  [default: RAY_ADDRESS, else this machine]")
def resume(directory: Path, trials: int | None, address: str | None) -> None:
    """Go on with the search in DIRECTORY, however it was ended; only what is missing is trained."""
    from ticket_search.search.run_directory import read_spec

    spec = read_spec(directory)
    if trials is not None:
        if spec.search.trials is None:
            raise SpecError(f"--trials {trials}: the search takes its whole grid already")
        if trials < spec.search.trials:
            raise SpecError(f"--trials {trials} is less than the search's {spec.search.trials}; give that or more")
        spec = spec.model_copy(update={"search": spec.search.model_copy(update={"trials": trials})})
    _run(spec, directory, address)


@main.command()
@click.argument("directory", type=_DIRECTORY)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(directory: Path, as_json: bool) -> None:
    """Say where the search in DIRECTORY stands."""
    from ticket_search.analysis.tickets import status as summarise
    from ticket_search.results.reading import load_results
    from ticket_search.search.run_directory import is_held, read_spec

    spec = read_spec(directory)
    found: dict[str, Any] = {"name": spec.name, "trials": spec.planned_trials, "running": is_held(directory)}
    found |= summarise(load_results(directory))
    if as_json:
        _print_json(found)
        return
    counts = ", ".join(f"{count} {name}" for name, count in found["trajectories"].items()) or "none yet"
    click.echo(f"{spec.name}: {'running' if found['running'] else 'not running'}")
    click.echo(f"trajectories: {counts}; of {spec.planned_trials}")
    click.echo(f"levels: {found['levels']}, {found['levels_trained']} trained in {found['train_seconds']:.0f} s")
    best = found["best"]
    click.echo(
        f"best ticket: {best['ticket']} at density {best['density']:.4f}" if best else "best ticket: none matches yet"
    )
    if not found["running"] and found["trajectories"].get("running"):
        click.echo(f"interrupted; go on with: {_resume_command(directory)}")


@main.command()
@click.argument("directory", type=_DIRECTORY)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def tickets(directory: Path, as_json: bool) -> None:
    """List the sparsest matching ticket of each trajectory in DIRECTORY, best first."""
    from ticket_search.analysis.tickets import records
    from ticket_search.analysis.tickets import tickets as sparsest
    from ticket_search.results.reading import load_results
    from ticket_search.search.run_directory import read_spec

    spec = read_spec(directory)
    found = sparsest(load_results(directory), spec.space)
    if as_json:
        _print_json(records(found))
    else:
        from ticket_search.display import print_tickets

        print_tickets(_console(), found, spec, most=len(found))


def _space_path(space: str) -> Path:
    shipped = {path.stem: path for path in sorted(_SHIPPED.glob("*.yaml"))}
    if Path(space).is_file() or space not in shipped:
        if not Path(space).exists():
            raise SpecError(f"no search space {space!r}: neither a file, nor one that ships ({', '.join(shipped)})")
        return Path(space)
    return shipped[space]


def _run(spec: "SearchSpec", directory: Path, address: str | None) -> None:
    from ticket_search.analysis.tickets import tickets as sparsest
    from ticket_search.display import Display, print_tickets
    from ticket_search.results.reading import load_results
    from ticket_search.search.run import run_search

    # A user's own modules are found from the working directory, as with `python -m`.
    sys.path.append(str(Path.cwd()))
    console = _console()
    display = Display(spec, console)
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    try:
        with display.shown():
            progress = run_search(spec, directory, address=address, listener=display, on_start=display.begin)
    except KeyboardInterrupt:
        if (directory / "search.yaml").exists():
            click.echo(f"interrupted; what was finished is kept. Go on with: {_resume_command(directory)}", err=True)
        else:
            click.echo("interrupted before anything was started", err=True)
        sys.exit(INTERRUPTED)
    if progress.exhausted:
        click.echo(f"the space is exhausted: its {progress.done} trajectories have all been run")
    more = f"ticket-search tickets {shlex.quote(str(directory))}"
    print_tickets(console, sparsest(load_results(directory), spec.space), spec, more=more)
    click.echo(f"results: {directory} (pd.read_parquet('{directory}/levels'))")
    if progress.counts["failed"]:
        click.echo(
            f"{progress.counts['failed']} of {progress.done} trajectories failed; why is in the column error of "
            f"{directory}/trajectories",
            err=True,
        )
        sys.exit(FAILED)


def _console() -> "Console":
    from rich.console import Console

    # Into a file or a pipe, tables are not squeezed into 80 columns.
    return Console() if sys.stdout.isatty() else Console(width=160)


def _interrupt(number: int, frame: object) -> NoReturn:
    """Of the first signal make an exception; leave the second to end the process at once."""
    del frame
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _end_at_once)
    raise KeyboardInterrupt(signal.Signals(number).name)


def _end_at_once(*_: object) -> NoReturn:
    os.write(2, b"interrupted again: ended at once; `ticket-search resume` goes on from what was finished\n")
    os._exit(INTERRUPTED)


def _resume_command(directory: Path) -> str:
    return f"ticket-search resume {shlex.quote(str(directory))}"


def _print_json(value: object) -> None:
    import json

    click.echo(json.dumps(value, indent=2))


if __name__ == "__main__":
    main()
