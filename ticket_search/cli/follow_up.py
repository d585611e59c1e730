"""Commands that build on a finished search: confirm, export, stability, transfer."""

import sys
from pathlib import Path

import click

from ticket_search.cli import INTERRUPTED
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
    Count,
    find_user_modules,
    in_places,
)
from ticket_search.cli.running import console, run_for_user, this_command
from ticket_search.cli.streams import outlive_audience
from ticket_search.errors import SpecError, quoted
from ticket_search.storage.folder import is_remote, open_folder


@main.command()
@click.argument("directory", type=DIRECTORY)
@click.option("--top", type=Count(), default=1, show_default=True, help="Number of configurations to confirm.")
@click.option("--seeds", type=Count(), default=5, show_default=True, help="Number of fresh seeds.")
@click.option("--draws", type=Count(), default=3, show_default=True, help="Number of controls of each kind.")
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

    These runs are a separate search, in DIRECTORY/confirmation; run the same command again to resume it. The result is
    the table DIRECTORY/confirm.
    """
    from ticket_search.analysis.tickets import tickets as sparsest
    from ticket_search.cli.display import print_arms
    from ticket_search.config.imports import check_code_allowed
    from ticket_search.follow_up.confirm import confirmation, write_confirmation
    from ticket_search.results.reading import load_results
    from ticket_search.results.schema import column

    folder = open_folder(directory)
    tickets = sparsest(load_results(directory))
    best = zip(tickets["trajectory_id"], tickets["level"].astype(int), strict=True)
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
    """Write a ticket to the safetensors file OUT: its mask, its rewind weights, and how it was found.

    TICKET is one of the names that `tickets` prints. ticket_search.load_ticket(OUT) returns the ticket's network, ready
    to train.
    """
    from ticket_search.config.imports import check_code_allowed
    from ticket_search.follow_up.export import export_ticket
    from ticket_search.runs.directory import read_spec

    if is_remote(out):
        raise SpecError(f"{quoted(out)} is not a local file; export to a local file, then copy it there")
    check_code_allowed(read_spec(open_folder(directory)), directory, allow_code=allow_code)
    find_user_modules()
    export_ticket(open_folder(directory), ticket, Path(out), data_dir=data_dir)
    click.echo(f"{ticket}: {out}")


@main.command()
@click.argument("directory", type=DIRECTORY)
@click.argument("ticket")
@click.option("--copies", type=Count(2, 1000), default=3, show_default=True, help="Number of copies of each network.")
@click.option(
    "--points",
    type=Count(3),
    default=30,
    show_default=True,
    help="Number of points to measure on the line between two copies.",
)
@click.option(
    "--rewind",
    "rewinds",
    type=Count(0, 10**9),
    multiple=True,
    metavar="K",
    help="Train copies of the dense network from its iteration K; may be repeated.  [default: as in the search]",
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
    """Train TICKET several times in different data orders, and measure the error barriers between the copies.

    The command also trains copies of the dense network from each rewind iteration. Iterations from which the dense
    network is stable are worth rewinding to. The command writes the tables DIRECTORY/stability and
    DIRECTORY/stability_lines, and a plot into DIRECTORY/plots. After an interruption, run the same command again to
    resume.
    """
    from ticket_search.cli.display import print_stability
    from ticket_search.config.imports import check_code_allowed
    from ticket_search.follow_up.stability import lines_between_copies, write_stability
    from ticket_search.runs.directory import read_spec

    folder = open_folder(directory)
    check_code_allowed(read_spec(folder), directory, allow_code=allow_code)
    outlive_audience()
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
        click.echo(f"interrupted; finished training runs are kept. Resume with: {this_command()}", err=True)
        sys.exit(INTERRUPTED)
    table, plot = write_stability(folder, ticket, lines)
    print_stability(console(), table)
    click.echo(f"plot: {plot}")


@main.command()
@click.argument("files", metavar="TICKET...", nargs=-1, required=True, type=click.Path(dir_okay=False))
@click.option("--dataset", required=True, help="Data set to train on, as named in a search space.")
@click.option("--output", type=DIRECTORY, help="Run directory.  [default: runs/<tickets>_on_<dataset>]")
@click.option("--seeds", type=Count(), default=5, show_default=True, help="Number of seeds for each ticket.")
@click.option("--draws", type=Count(), default=1, show_default=True, help="Number of controls of each kind.")
@click.option("--mask-alone", is_flag=True, help="Use only the mask, with rewind weights from the new data set.")
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
    """Train tickets on another data set, with dense networks and controls. TICKET is a file that `export` wrote.

    Each ticket is trained once per seed, with the settings of the search that found it. If the number of classes
    differs, the ticket gets a new, dense output layer. These runs are a separate search with its own run directory; run
    the same command again to resume it. The result is the table transfer in that directory.
    """
    from ticket_search.cli.display import print_arms
    from ticket_search.follow_up.transfer import read_tickets, write_transfer
    from ticket_search.follow_up.transfer import transfer as transfer_search

    tickets = read_tickets([Path(file) for file in files], allow_code=allow_code)
    spec = transfer_search(tickets, dataset, seeds=seeds, draws=draws, mask_alone=mask_alone, settings=settings)
    spec = in_places(spec, data_dir, store)
    directory = output or f"runs/{spec.name}"
    outlive_audience()
    for file, (key, ticket) in zip(files, tickets.items(), strict=True):
        click.echo(f"ticket {key}: {file} ({ticket.name}, density {ticket.density:.4f})")
    entries = {key: ticket.to_entry() for key, ticket in tickets.items()}
    code = run_for_user(spec, directory, address, engine=engine, entries=entries, again=this_command())
    table = write_transfer(open_folder(directory), margin)
    if table is None:
        click.echo(
            f"no ticket finished training, so there is nothing to compare; see {directory}/trajectories", err=True
        )
        sys.exit(code)
    print_arms(console(), table, ["tickets"])
    sys.exit(code)
