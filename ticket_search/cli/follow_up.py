"""Commands that follow a search: confirm, export, stability, transfer."""

import sys
from pathlib import Path

import click

from ticket_search.cli.group import main
from ticket_search.cli.options import (
    ADDRESS,
    ALLOW_CODE,
    DATA_DIR,
    DATA_DIR_OF_SEARCH,
    DIRECTORY,
    ENGINE,
    MARGIN,
    STORE,
    find_user_modules,
    in_places,
)
from ticket_search.cli.running import INTERRUPTED, console, run_for_user, this_command
from ticket_search.errors import SpecError
from ticket_search.storage.folder import is_remote, open_folder


@main.command()
@click.argument("directory", type=DIRECTORY)
@click.option("--top", type=click.IntRange(min=1), default=1, show_default=True, help="How many configurations.")
@click.option("--seeds", type=click.IntRange(min=1), default=5, show_default=True, help="How many fresh seeds.")
@click.option("--draws", type=click.IntRange(min=1), default=3, show_default=True, help="Of each kind of control.")
@MARGIN
@ENGINE
@ADDRESS
@ALLOW_CODE
def confirm(
    directory: str,
    top: int,
    seeds: int,
    draws: int,
    margin: float,
    engine: str,
    address: str | None,
    allow_code: bool,
) -> None:
    """Run the best configurations of the search in DIRECTORY again, on fresh seeds and with controls.

    They are run as a search in DIRECTORY/confirmation; the same command goes on with it. What it comes to is the table
    DIRECTORY/confirm.
    """
    from ticket_search.analysis.tickets import tickets as sparsest
    from ticket_search.cli.display import print_arms
    from ticket_search.config.imports import check_code_allowed
    from ticket_search.follow_up.confirm import confirmation, write_confirmation
    from ticket_search.results.reading import load_results
    from ticket_search.results.schema import column

    folder = open_folder(directory)
    found = sparsest(load_results(directory))
    best = zip(found["trajectory_id"], found["level"].astype(int), strict=True)
    spec = confirmation(folder, best, top=top, seeds=seeds, draws=draws)
    check_code_allowed(spec, directory, allow_code=allow_code)
    where = folder / "confirmation"
    code = run_for_user(spec, str(where), address, engine=engine, again=this_command())
    table = write_confirmation(folder, where, margin)
    print_arms(console(), table, [column(name) for name in spec.space])
    sys.exit(code)


@main.command()
@click.argument("directory", type=DIRECTORY)
@click.argument("ticket")
@click.argument("out", type=click.Path(dir_okay=False))
@DATA_DIR_OF_SEARCH
@ALLOW_CODE
def export(directory: str, ticket: str, out: str, data_dir: str | None, allow_code: bool) -> None:
    """Write TICKET, as `tickets` names it, into the safetensors file OUT: mask, rewind weights, how it was found.

    ticket_search.load_ticket(OUT) is its network, ready to train.
    """
    from ticket_search.config.imports import check_code_allowed
    from ticket_search.follow_up.export import export_ticket
    from ticket_search.runs.directory import read_spec

    if is_remote(out):
        raise SpecError(f"{out!r} is not a local file; export into one, and copy it there")
    check_code_allowed(read_spec(open_folder(directory)), directory, allow_code=allow_code)
    find_user_modules()
    export_ticket(open_folder(directory), ticket, Path(out), data_dir=data_dir)
    click.echo(f"{ticket}: {out}")


@main.command()
@click.argument("directory", type=DIRECTORY)
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
@DATA_DIR_OF_SEARCH
@ENGINE
@ADDRESS
@ALLOW_CODE
def stability(
    directory: str,
    ticket: str,
    copies: int,
    points: int,
    rewinds: tuple[int, ...],
    data_dir: str | None,
    engine: str,
    address: str | None,
    allow_code: bool,
) -> None:
    """Train TICKET several times under different data orders, and measure the error between the copies.

    The same for the dense network from each rewind iteration on: from where it is stable, tickets are worth rewinding
    to. The tables are DIRECTORY/stability and stability_lines, the plot is in DIRECTORY/plots; the same command goes
    on after an interruption.
    """
    from ticket_search.cli.display import print_stability
    from ticket_search.config.imports import check_code_allowed
    from ticket_search.follow_up.stability import lines_between_copies, write_stability
    from ticket_search.runs.directory import read_spec

    folder = open_folder(directory)
    check_code_allowed(read_spec(folder), directory, allow_code=allow_code)
    find_user_modules()
    try:
        lines = lines_between_copies(
            folder,
            ticket,
            copies=copies,
            points=points,
            rewinds=rewinds,
            data_dir=data_dir,
            engine=engine,
            address=address,
            say=lambda line: click.echo(line, err=True),
        )
    except KeyboardInterrupt:
        click.echo(f"interrupted; what was trained is kept. Go on with: {this_command()}", err=True)
        sys.exit(INTERRUPTED)
    table, plot = write_stability(folder, ticket, lines)
    print_stability(console(), table)
    click.echo(f"plot: {plot}")


@main.command()
@click.argument("files", metavar="TICKET...", nargs=-1, required=True, type=click.Path(dir_okay=False))
@click.option("--dataset", required=True, help="The data set to train them on, by its name in a search space.")
@click.option("--output", type=DIRECTORY, help="Run directory.  [default: runs/<tickets>_on_<dataset>]")
@click.option(
    "--seeds", type=click.IntRange(1, 10_000), default=5, show_default=True, help="How many, for each ticket."
)
@click.option("--draws", type=click.IntRange(1, 10_000), default=1, show_default=True, help="Of each kind of control.")
@click.option("--mask-alone", is_flag=True, help="Take the mask, and weights of the new data set's dense networks.")
@MARGIN
@DATA_DIR
@STORE
@ENGINE
@ADDRESS
@ALLOW_CODE
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
    engine: str,
    address: str | None,
    allow_code: bool,
    settings: tuple[str, ...],
) -> None:
    """Train tickets on another data set, beside dense networks and controls. TICKET is a file that `export` wrote.

    They are trained as where they were found, with each seed; where the classes are others, the output layer is new
    and whole. It is a search in the run directory; the same command goes on with it. What it comes to is its table
    transfer.
    """
    from ticket_search.cli.display import print_arms
    from ticket_search.follow_up.transfer import read_tickets, write_transfer
    from ticket_search.follow_up.transfer import transfer as transfer_search

    tickets = read_tickets([Path(file) for file in files], allow_code=allow_code)
    spec = transfer_search(tickets, dataset, seeds=seeds, draws=draws, mask_alone=mask_alone, settings=settings)
    spec = in_places(spec, data_dir, store)
    directory = output or f"runs/{spec.name}"
    for file, (key, ticket) in zip(files, tickets.items(), strict=True):
        click.echo(f"ticket {key}: {file} ({ticket.name}, density {ticket.density:.4f})")
    entries = {key: ticket.to_entry() for key, ticket in tickets.items()}
    code = run_for_user(spec, directory, address, engine=engine, entries=entries, again=this_command())
    table = write_transfer(open_folder(directory), margin)
    if table is None:
        click.echo(f"no ticket was trained to its end: nothing to compare; see {directory}/trajectories", err=True)
        sys.exit(code)
    print_arms(console(), table, ["tickets"])
    sys.exit(code)
