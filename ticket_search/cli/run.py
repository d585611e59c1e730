"""Commands that run a search: run, resume, stop."""

import sys

import click

from ticket_search.cli.group import main
from ticket_search.cli.options import (
    ADDRESS,
    ALLOW_CODE,
    DATA_DIR,
    DIRECTORY,
    ENGINE,
    MOST_TRIALS,
    STORE,
    Count,
    find_user_modules,
    in_places,
)
from ticket_search.cli.running import resume_command, run_for_user
from ticket_search.config.shipped import search_file
from ticket_search.storage.folder import open_folder


@main.command()
@click.argument("space")
@click.option(
    "--output", type=DIRECTORY, help="Run directory, local or s3://bucket/path.  [default: runs/<name of the search>]"
)
@click.option("--trials", type=Count(1, MOST_TRIALS), help="Number of trajectories to run, instead of search.trials.")
@DATA_DIR
@STORE
@ENGINE
@ADDRESS
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Set any key of SPACE; may be repeated.")
@click.option(
    "--dry-run", is_flag=True, help="Only print what would run, where, and how much disk space it would need."
)
def run(
    space: str,
    output: str | None,
    trials: int | None,
    data_dir: str | None,
    store: str | None,
    engine: str,
    address: str | None,
    settings: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Run the search SPACE: a YAML file, or the name of a search that ships with ticket_search, such as digits.

    If the run directory already contains this search, the search is resumed.
    """
    from ticket_search.config.loading import load_search

    if trials is not None:
        settings = (*settings, f"search.trials={trials}")
    spec = in_places(load_search(search_file(space), settings), data_dir, store)
    directory = output or f"runs/{spec.name}"
    if not dry_run:
        sys.exit(run_for_user(spec, directory, address, engine=engine))
    from ticket_search.launch.run import dry_run as say_what_would_run

    find_user_modules()
    say_what_would_run(spec, directory, engine=engine, address=address, say=click.echo)


@main.command()
@click.argument("directory", type=DIRECTORY)
@click.option("--trials", type=Count(1, MOST_TRIALS), help="Raise the number of trajectories.")
@ENGINE
@ADDRESS
@ALLOW_CODE
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change one of the settings that may be changed, e.g. search.early_stopping.patience=4.",
)
def resume(
    directory: str, trials: int | None, engine: str, address: str | None, allow_code: bool, settings: tuple[str, ...]
) -> None:
    """Resume the search in DIRECTORY, however it ended. Only missing levels are trained."""
    from ticket_search.config.imports import check_code_allowed
    from ticket_search.runs.resume import resumed

    spec = in_places(resumed(open_folder(directory), trials, settings), None, None)
    check_code_allowed(spec, directory, allow_code=allow_code)
    sys.exit(run_for_user(spec, directory, address, engine=engine))


@main.command()
@click.argument("directory", type=DIRECTORY)
def stop(directory: str) -> None:
    """Ask the search running in DIRECTORY to stop as soon as the levels now in training are finished."""
    from ticket_search.runs.directory import read_run, read_spec, request_stop

    folder = open_folder(directory)
    owner, run = request_stop(folder), read_run(folder)
    click.echo(f"{owner} will stop when the levels now in training are done")
    again = resume_command(directory, read_spec(folder), run.engine if run else "ray")
    click.echo(f"resume with: {again}")
