"""Commands that inspect a search: status, tickets."""

import shlex
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
    """Show the progress of the search in DIRECTORY."""
    from ticket_search.analysis.tickets import status as summarize
    from ticket_search.results.reading import load_results
    from ticket_search.runs.directory import held_by, read_run, read_spec

    folder = open_folder(directory)
    spec, owner = read_spec(folder), held_by(folder)
    figures: dict[str, Any] = {"name": spec.name, "trials": spec.planned_trials, "running": owner is not None}
    figures |= summarize(load_results(directory))
    if as_json:
        print_json(figures)
        return
    counts = ", ".join(f"{count} {name}" for name, count in figures["trajectories"].items()) or "none yet"
    click.echo(f"{spec.name}: {f'running in {owner}' if owner else 'not running'}")
    click.echo(f"trajectories: {counts}; {spec.planned_trials} planned")
    click.echo(f"levels: {figures['levels']}, {figures['levels_trained']} trained in {figures['train_seconds']:.0f} s")
    if figures["controls"]:
        click.echo(f"controls: {figures['controls']}")
    best = figures["best"]
    click.echo(
        f"best ticket: {best['ticket']} at density {best['density']:.4f}" if best else "best ticket: none matches yet"
    )
    if not figures["running"] and figures["trajectories"].get("running"):
        run = read_run(folder)
        click.echo(f"interrupted; resume with: {resume_command(directory, spec, run.engine if run else 'ray')}")


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
    best = sparsest(load_results(directory), spec.space)
    if as_json:
        print_json(records(best))
    else:
        from ticket_search.cli.display import print_tickets

        print_tickets(console(), best, spec, most=len(best), more=f"ticket-search tickets {shlex.quote(directory)}")
