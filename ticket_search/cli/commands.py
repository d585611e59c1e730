"""The command line: parse, call, exit code. Whatever is heavy is imported by the command that needs it."""

import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ticket_search.cli.running import INTERRUPTED, console, resume_command, run_for_user, this_command
from ticket_search.errors import SpecError, TicketSearchError
from ticket_search.storage.folder import is_remote, open_folder

if TYPE_CHECKING:
    from ticket_search.config.search import SearchSpec

_SHIPPED = Path(__file__).parents[1] / "search_spaces"


class _Location(click.Path):
    """A directory as it was typed, local or a URI of object storage."""

    def __init__(self, *, local: bool = False) -> None:
        super().__init__(file_okay=False)
        self._local = local

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value).strip():
            self.fail("'' is no directory", param, ctx)
        if "://" not in str(value):
            return super().convert(value, param, ctx)
        if self._local:
            self.fail(f"{str(value)!r} is not a local directory", param, ctx)
        return str(open_folder(value))


_DIRECTORY = _Location()
_ADDRESS = click.option(
    "--address", help="A Ray cluster to run on, e.g. auto.  [default: RAY_ADDRESS, else this machine]"
)
_STORE = click.option(
    "--store", type=_DIRECTORY, help="A level store shared with other searches.  [default: in the run directory]"
)
_MARGIN = click.option(
    "--margin",
    type=click.FloatRange(0, 1),
    default=0.005,
    show_default=True,
    help="A ticket matches at up to so much below its dense network.",
)
_DATA_DIR = click.option(
    "--data-dir",
    type=_Location(local=True),
    envvar="TICKET_SEARCH_DATA_DIR",
    help="Where data sets lie.  [default: data]",
)
_DATA_DIR_OF_SEARCH = click.option(
    "--data-dir",
    type=_Location(local=True),
    envvar="TICKET_SEARCH_DATA_DIR",
    help="Where data sets lie.  [default: where the search had them]",
)


class _Commands(click.Group):
    """Turns the errors that a user may see into one message and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        if threading.current_thread() is threading.main_thread():
            # A shell has a job in the background ignore SIGINT.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.default_int_handler)
        try:
            return super().invoke(ctx)
        except TicketSearchError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(INTERRUPTED)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="ticket_search")
def main() -> None:
    """Search for winning lottery tickets: many iterative-magnitude-pruning trajectories, in parallel, on Ray."""


@main.command()
@click.argument("space")
@click.option(
    "--output", type=_DIRECTORY, help="Run directory, local or s3://bucket/path.  [default: runs/<name of the search>]"
)
@click.option("--trials", type=click.IntRange(min=1), help="Trajectories to run, instead of search.trials.")
@_DATA_DIR
@_STORE
@_ADDRESS
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Set any key of SPACE; may be repeated.")
@click.option("--dry-run", is_flag=True, help="Only say what would run where, and the disk it would take.")
def run(
    space: str,
    output: str | None,
    trials: int | None,
    data_dir: str | None,
    store: str | None,
    address: str | None,
    settings: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Run the search SPACE: a YAML file, or the name of a search that ships, such as digits.

    Run again on the same directory, it goes on from where it stopped.
    """
    from ticket_search.config.loading import load_search

    if trials is not None:
        settings = (*settings, f"search.trials={trials}")
    spec = _in_places(load_search(_space_path(space), settings), data_dir, store)
    directory = output or f"runs/{spec.name}"
    if not dry_run:
        sys.exit(run_for_user(spec, directory, address))
    from ticket_search.launch.run import dry_run as say_what_would_run

    sys.path.append(str(Path.cwd()))
    say_what_would_run(spec, directory, address=address, say=click.echo)


@main.command()
@click.argument("directory", type=_DIRECTORY)
@click.option("--trials", type=click.IntRange(min=1), help="Raise the number of trajectories.")
@_ADDRESS
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a rule, as early stopping's.")
def resume(directory: str, trials: int | None, address: str | None, settings: tuple[str, ...]) -> None:
    """Go on with the search in DIRECTORY, however it was ended; only what is missing is trained."""
    from ticket_search.config.search import CHANGEABLE_SETTINGS, PLACES
    from ticket_search.runs.directory import read_spec

    there = read_spec(open_folder(directory))
    before = there.search.trials
    if trials is not None:
        if before is None:
            raise SpecError(f"--trials {trials}: the search takes its whole grid already")
        settings = (*settings, f"search.trials={trials}")
    spec = read_spec(open_folder(directory), settings)
    if spec.identity() != there.identity():
        changeable = ", ".join(f"search.{name}" for name in CHANGEABLE_SETTINGS)
        raise SpecError(
            f"--set {' --set '.join(settings)}: that would be another search; {changeable} and {', '.join(PLACES)} "
            "may change"
        )
    after = spec.search.trials
    if before is not None and after is not None and after < before:
        raise SpecError(f"--trials {after} is less than the search's {before}; give that or more")
    sys.exit(run_for_user(_with_absolute_store(spec), directory, address))


@main.command()
@click.argument("directory", type=_DIRECTORY)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(directory: str, as_json: bool) -> None:
    """Say where the search in DIRECTORY stands."""
    from ticket_search.analysis.tickets import status as summarise
    from ticket_search.results.reading import load_results
    from ticket_search.runs.directory import held_by, read_spec

    spec, owner = read_spec(open_folder(directory)), held_by(open_folder(directory))
    found: dict[str, Any] = {"name": spec.name, "trials": spec.planned_trials, "running": owner is not None}
    found |= summarise(load_results(directory))
    if as_json:
        _print_json(found)
        return
    counts = ", ".join(f"{count} {name}" for name, count in found["trajectories"].items()) or "none yet"
    click.echo(f"{spec.name}: {f'being run by {owner}' if owner else 'not running'}")
    click.echo(f"trajectories: {counts}; of {spec.planned_trials}")
    click.echo(f"levels: {found['levels']}, {found['levels_trained']} trained in {found['train_seconds']:.0f} s")
    if found["controls"]:
        click.echo(f"controls: {found['controls']}")
    best = found["best"]
    click.echo(
        f"best ticket: {best['ticket']} at density {best['density']:.4f}" if best else "best ticket: none matches yet"
    )
    if not found["running"] and found["trajectories"].get("running"):
        click.echo(f"interrupted; go on with: {resume_command(directory)}")


@main.command()
@click.argument("directory", type=_DIRECTORY)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def tickets(directory: str, as_json: bool) -> None:
    """List the sparsest matching ticket of each trajectory in DIRECTORY, best first."""
    from ticket_search.analysis.tickets import records
    from ticket_search.analysis.tickets import tickets as sparsest
    from ticket_search.results.reading import load_results
    from ticket_search.runs.directory import read_spec

    spec = read_spec(open_folder(directory))
    found = sparsest(load_results(directory), spec.space)
    if as_json:
        _print_json(records(found))
    else:
        from ticket_search.cli.display import print_tickets

        print_tickets(console(), found, spec, most=len(found))


@main.command()
@click.argument("directory", type=_DIRECTORY)
@click.option("--top", type=click.IntRange(min=1), default=1, show_default=True, help="How many configurations.")
@click.option("--seeds", type=click.IntRange(min=1), default=5, show_default=True, help="How many fresh seeds.")
@click.option("--draws", type=click.IntRange(min=1), default=3, show_default=True, help="Of each kind of control.")
@_MARGIN
@_ADDRESS
def confirm(directory: str, top: int, seeds: int, draws: int, margin: float, address: str | None) -> None:
    """Run the best configurations of the search in DIRECTORY again, on fresh seeds and with controls.

    They are run as a search in DIRECTORY/confirmation; the same command goes on with it. What it comes to is the table
    DIRECTORY/confirm.
    """
    from ticket_search.analysis.confirmation import confirm_table
    from ticket_search.analysis.tickets import tickets as sparsest
    from ticket_search.cli.display import print_arms
    from ticket_search.follow_up.confirm import confirmation
    from ticket_search.results.reading import load_results
    from ticket_search.results.schema import column

    folder = open_folder(directory)
    found = sparsest(load_results(directory))
    best = zip(found["trajectory_id"], found["level"].astype(int), strict=True)
    spec = confirmation(folder, best, top=top, seeds=seeds, draws=draws)
    where = folder / "confirmation"
    code = run_for_user(spec, str(where), address, again=this_command())
    table = confirm_table(load_results(where), margin)
    (folder / "confirm").write("part-00000.parquet", table.to_parquet())
    print_arms(console(), table, [column(name) for name in spec.space])
    sys.exit(code)


@main.command()
@click.argument("directory", type=_DIRECTORY)
@click.argument("ticket")
@click.argument("out", type=click.Path(dir_okay=False))
@_DATA_DIR_OF_SEARCH
def export(directory: str, ticket: str, out: str, data_dir: str | None) -> None:
    """Write TICKET, as `tickets` names it, into the safetensors file OUT: mask, rewind weights, how it was found.

    ticket_search.load_ticket(OUT) is its network, ready to train.
    """
    from ticket_search.follow_up.export import export_ticket

    if is_remote(out):
        raise SpecError(f"{out!r} is not a local file; export into one, and copy it there")
    sys.path.append(str(Path.cwd()))
    export_ticket(open_folder(directory), ticket, Path(out), data_dir=data_dir)
    click.echo(f"{ticket}: {out}")


@main.command()
@click.argument("directory", type=_DIRECTORY)
@click.argument("ticket")
@click.option("--copies", type=click.IntRange(2, 1000), default=3, show_default=True, help="Trainings of each start.")
@click.option(
    "--points", type=click.IntRange(3, 10_000), default=30, show_default=True, help="On each line, ends included."
)
@click.option(
    "--rewind",
    "rewinds",
    type=click.IntRange(min=0),
    multiple=True,
    metavar="K",
    help="A dense network from its iteration K on; may be repeated.  [default: those that the search lists]",
)
@_DATA_DIR_OF_SEARCH
@_ADDRESS
def stability(
    directory: str,
    ticket: str,
    copies: int,
    points: int,
    rewinds: tuple[int, ...],
    data_dir: str | None,
    address: str | None,
) -> None:
    """Train TICKET several times under different data orders, and measure the error between the copies.

    The same for the dense network from each rewind iteration on: from where it is stable, tickets are worth rewinding
    to. The tables are DIRECTORY/stability and stability_lines, the plot is in DIRECTORY/plots; the same command goes
    on after an interruption.
    """
    from ticket_search.analysis.stability import plot, stability_table
    from ticket_search.cli.display import print_stability
    from ticket_search.follow_up.stability import lines_between_copies

    sys.path.append(str(Path.cwd()))
    folder, name = open_folder(directory), ticket.replace("/", "-")
    try:
        lines = lines_between_copies(
            folder,
            ticket,
            copies=copies,
            points=points,
            rewinds=rewinds,
            data_dir=data_dir,
            address=address,
            say=lambda line: click.echo(line, err=True),
        )
    except KeyboardInterrupt:
        click.echo(f"interrupted; what was trained is kept. Go on with: {this_command()}", err=True)
        sys.exit(INTERRUPTED)
    table = stability_table(lines)
    (folder / "stability_lines").write(f"{name}.parquet", lines.to_parquet())
    (folder / "stability").write(f"{name}.parquet", table.to_parquet())
    (folder / "plots").write(f"stability-{name}.svg", plot(lines))
    print_stability(console(), table)
    click.echo(f"plot: {(folder / 'plots').place(f'stability-{name}.svg')}")


@main.command()
@click.argument("files", metavar="TICKET...", nargs=-1, required=True, type=click.Path(dir_okay=False))
@click.option("--dataset", required=True, help="The data set to train them on, by its name in a search space.")
@click.option("--output", type=_DIRECTORY, help="Run directory.  [default: runs/<tickets>_on_<dataset>]")
@click.option(
    "--seeds", type=click.IntRange(1, 10_000), default=5, show_default=True, help="How many, for each ticket."
)
@click.option("--draws", type=click.IntRange(1, 10_000), default=1, show_default=True, help="Of each kind of control.")
@click.option("--mask-alone", is_flag=True, help="Take the mask, and weights of the new data set's dense networks.")
@_MARGIN
@_DATA_DIR
@_STORE
@_ADDRESS
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Set any key of the search.")
def transfer(
    files: tuple[str, ...],
    dataset: str,
    output: str | None,
    seeds: int,
    draws: int,
    mask_alone: bool,
    margin: float,
    data_dir: str | None,
    store: str | None,
    address: str | None,
    settings: tuple[str, ...],
) -> None:
    """Train tickets on another data set, beside dense networks and controls. TICKET is a file that `export` wrote.

    They are trained as where they were found, with each seed; where the classes are others, the output layer is new
    and whole. It is a search in the run directory; the same command goes on with it. What it comes to is its table
    transfer.
    """
    from ticket_search.analysis.transfer import transfer_table
    from ticket_search.cli.display import print_arms
    from ticket_search.follow_up.transfer import read_tickets
    from ticket_search.follow_up.transfer import transfer as transfer_search
    from ticket_search.results.reading import load_results

    tickets = read_tickets([Path(file) for file in files])
    spec = transfer_search(tickets, dataset, seeds=seeds, draws=draws, mask_alone=mask_alone, settings=settings)
    spec = _in_places(spec, data_dir, store)
    directory = output or f"runs/{spec.name}"
    for file, (key, ticket) in zip(files, tickets.items(), strict=True):
        click.echo(f"ticket {key}: {file} ({ticket.name}, density {ticket.density:.4f})")
    entries = {key: ticket.to_entry() for key, ticket in tickets.items()}
    code = run_for_user(spec, directory, address, entries=entries, again=this_command())
    table = transfer_table(load_results(directory), margin)
    if table.empty:
        click.echo(f"no ticket was trained to its end: nothing to compare; see {directory}/trajectories", err=True)
        sys.exit(code)
    (open_folder(directory) / "transfer").write("part-00000.parquet", table.to_parquet())
    print_arms(console(), table, ["tickets"])
    sys.exit(code)


@main.command()
@click.argument("source")
@click.argument("directory", type=_Location(local=True))
def pull(source: str, directory: str) -> None:
    """Copy the results of the search in SOURCE into DIRECTORY: tables, tickets and TensorBoard files, not its store.

    SOURCE is user@host:path (over rsync), s3://bucket/path, or a path. Again, it copies what has changed since.
    """
    from ticket_search.launch.disk import in_words
    from ticket_search.runs.pull import pull as copy_results

    done = copy_results(source, Path(directory))
    click.echo(f"{directory}: {done.files} files copied ({in_words(done.size)}), {done.unchanged} were there")


@main.command()
@click.argument("directory", type=_DIRECTORY)
def stop(directory: str) -> None:
    """Ask the search that runs in DIRECTORY to stop once the levels being trained are done."""
    from ticket_search.runs.directory import request_stop

    owner = request_stop(open_folder(directory))
    click.echo(f"{owner} stops when the levels that it is training are done")
    click.echo(f"go on with: {resume_command(directory)}")


@main.command()
@click.argument("directory", type=_DIRECTORY)
@click.option("--prune", is_flag=True, help="Remove what no search needs.")
@click.option(
    "--keep-best",
    type=click.IntRange(min=0),
    is_flag=False,
    flag_value=10,
    metavar="[N]",
    help="Prune, and of trajectories that have ended keep only each search's N best tickets.  [N: 10]",
)
@click.option("--forget-gone", is_flag=True, help="Prune what a search needed that is not found where it was.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
def store(directory: str, prune: bool, keep_best: int | None, forget_gone: bool, dry_run: bool) -> None:
    """Say what the level store of the search in DIRECTORY, or the store DIRECTORY, holds; remove what no search needs.

    What is removed stays in the tables; a search that comes to need it trains it again.
    """
    from ticket_search.analysis.tickets import tickets as sparsest
    from ticket_search.launch.disk import in_words
    from ticket_search.runs.store_use import inspect
    from ticket_search.runs.store_use import prune as remove_unneeded

    best = None if keep_best is None else lambda results: sparsest(results).head(keep_best)
    use = inspect(open_folder(directory), best, forget_gone=forget_gone)
    click.echo(f"store: {use.folder}")
    for kind, files in use.kinds.items():
        click.echo(f"{kind:<15}{len(files):>8} files{in_words(sum(file.size for file in files)):>10}")
    for run_dir in use.searches:
        click.echo(f"used by {run_dir}")
    for run_dir in use.gone:
        kept = "nothing is kept for it" if forget_gone else "entries it may need are kept; --forget-gone gives them up"
        click.echo(f"{run_dir} used it and is not found there: {kept}")
    size = f"{len(use.unneeded)} files, {in_words(sum(file.size for file in use.unneeded))}"
    removes = (prune or keep_best is not None) and not dry_run
    if removes:
        remove_unneeded(use)
    if not use.unneeded:
        click.echo("a search needs each of them")
    elif removes:
        click.echo(f"removed: {size}")
    elif not (prune or keep_best is not None):
        click.echo(f"needed by no search: {size}; --prune removes them")
    else:
        click.echo(f"needed by no search: {size}; without --dry-run they are removed")


def _space_path(space: str) -> Path:
    shipped = {path.stem: path for path in sorted(_SHIPPED.glob("*.yaml"))}
    if Path(space).is_file() or space not in shipped:
        if not Path(space).exists():
            raise SpecError(f"no search space {space!r}: neither a file, nor one that ships ({', '.join(shipped)})")
        return Path(space)
    return shipped[space]


def _in_places(spec: "SearchSpec", data_dir: str | None, store: str | None) -> "SearchSpec":
    """The search with its data and its store where the command line says."""
    places = {"data_dir": data_dir, "store": store}
    spec = spec.model_copy(update={name: str(open_folder(place)) for name, place in places.items() if place})
    return _with_absolute_store(spec)


def _with_absolute_store(spec: "SearchSpec") -> "SearchSpec":
    """The search with a store that every working directory, and every machine, finds."""
    return spec.model_copy(update={"store": str(open_folder(spec.store))}) if spec.store else spec


def _print_json(value: object) -> None:
    import json

    click.echo(json.dumps(value, indent=2))


if __name__ == "__main__":
    main()
