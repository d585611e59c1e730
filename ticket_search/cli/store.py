"""Commands that manage a search's files: pull, store."""

from pathlib import Path

import click

from ticket_search.cli.group import main
from ticket_search.cli.options import DIRECTORY, Count, Location
from ticket_search.storage.folder import open_folder


@main.command()
@click.argument("source")
@click.argument("directory", type=Location(local=True))
def pull(source: str, directory: str) -> None:
    """Copy the results of the search in SOURCE to DIRECTORY: tables, tickets and TensorBoard files, but not its store.

    SOURCE is user@host:path (over rsync), s3://bucket/path, or a local path. Running the command again copies
    only files that have changed.
    """
    from ticket_search.launch.disk import in_words
    from ticket_search.runs.pull import pull as copy_results

    done = copy_results(source, Path(directory))
    click.echo(f"{directory}: {done.files} files copied ({in_words(done.size)}), {done.unchanged} unchanged")


@main.command()
@click.argument("directory", type=DIRECTORY)
@click.option("--prune", is_flag=True, help="Remove entries that no search needs.")
@click.option(
    "--keep-best",
    type=Count(0, 2**31 - 1),
    is_flag=False,
    flag_value=10,
    metavar="[N]",
    help="Prune, and keep only the N best tickets of each search's finished trajectories.  [N: 10]",
)
@click.option("--forget-gone", is_flag=True, help="Also prune the entries of searches whose directories are missing.")
@click.option("--dry-run", is_flag=True, help="Only print what would be removed.")
def store(directory: str, prune: bool, keep_best: int | None, forget_gone: bool, dry_run: bool) -> None:
    """Show the contents of a level store, and remove files that no search needs.

    DIRECTORY is a level store, or the run directory of a search that uses one. Removing entries does not change the
    tables of results; a search that needs a removed level trains it again.
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
        kept = "its entries are not kept" if forget_gone else "its entries are kept; --forget-gone removes them"
        click.echo(f"used by {run_dir}, which is missing: {kept}")
    size = f"{len(use.unneeded)} files, {in_words(sum(file.size for file in use.unneeded))}"
    removes = (prune or keep_best is not None) and not dry_run
    if removes:
        remove_unneeded(use)
    if not use.unneeded:
        click.echo("all files are needed")
    elif removes:
        click.echo(f"removed: {size}")
    elif not (prune or keep_best is not None):
        click.echo(f"needed by no search: {size}; --prune removes them")
    else:
        click.echo(f"needed by no search: {size}; --dry-run keeps them")
