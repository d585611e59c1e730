"""Commands that look at a search: status, tickets."""

from typing import Any

import click

from ticket_search.cli.group import main
from ticket_search.cli.options import DIRECTORY, print_json
from ticket_search.cli.running import console, resume_command
from ticket_search.storage.folder import open_folder


@main.command()
@click.argument("directory", type=DIRECTORY)
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
        print_json(found)
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
        click.echo(f"interrupted; go on with: {resume_command(directory, spec)}")


@main.command()
@click.argument("directory", type=DIRECTORY)
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
        print_json(records(found))
    else:
        from ticket_search.cli.display import print_tickets

        print_tickets(console(), found, spec, most=len(found))
