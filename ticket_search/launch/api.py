"""Searches from Python: what ``ticket-search run`` does, in a notebook or a script."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ticket_search.config.loading import load_search, with_settings
from ticket_search.config.search import SearchSpec
from ticket_search.config.shipped import search_file
from ticket_search.launch import run
from ticket_search.storage.folder import open_folder

if TYPE_CHECKING:
    from ticket_search.results.reading import Results


def run_search(
    space: SearchSpec | Mapping[str, Any] | str | Path,
    output: str | Path | None = None,
    *,
    engine: str = "ray",
    address: str | None = None,
    trials: int | None = None,
    settings: Mapping[str, Any] | None = None,
    data_dir: str | Path | None = None,
    store: str | Path | None = None,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr),  # noqa: T201 (a notebook shows it)
    on_trajectory: Callable[[Mapping[str, Any]], None] = lambda row: None,
) -> "Results":
    """Run a search to its end and read its results; run again on the same directory, it resumes.

    Args:
        space: the search: a file, the name of one that ships (``"digits"``), what a file holds as a dict, or a
            `SearchSpec`.
        output: the run directory, a path or ``s3://bucket/path``; None is ``runs/<name of the search>``.
        engine: where trajectories run: ``inline`` (in this process, for a debugger), ``processes`` (processes of this
            machine, without Ray) or ``ray``.
        address: of a Ray cluster, such as ``auto`` on one of its nodes; None is ``RAY_ADDRESS``, else this machine.
        trials: how many trajectories, instead of ``search.trials``.
        settings: dotted keys of the search -> values, as ``{"training.iterations": 500}``.
        data_dir: where data sets lie, instead of the search's ``data_dir``.
        store: a level store that other searches share, instead of the search's ``store``.
        say: receives lines about the plan, the disk that the search will take, and what else one should know.
        on_trajectory: receives the row of ``trajectories`` of each trajectory that ends.

    Returns:
        The tables as pandas frames. Trajectories that failed stand in ``trajectories`` with their error.

    Raises:
        SpecError: the search cannot be run as written, or `output` holds another one; nothing was started.
        StorageError: the disk is full, say; finished levels are kept, and the same call resumes.
        TicketSearchError: the search had to stop for another reason; the same holds.
    """
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # where the user's own modules are found, as by the command
    changes = dict(settings or {}) | ({} if trials is None else {"search.trials": trials})
    places = {"data_dir": data_dir, "store": store}
    changes |= {name: str(open_folder(place)) for name, place in places.items() if place is not None}
    spec = with_settings(_spec(space), changes)
    if spec.store:
        spec = spec.model_copy(update={"store": str(open_folder(spec.store))})
    directory = output or f"runs/{spec.name}"
    run.run_search(
        spec,
        directory,
        engine=engine,
        address=address,
        listener=lambda progress, row: on_trajectory(row),
        say=say,
    )
    from ticket_search.results.reading import load_results

    return load_results(directory)


def _spec(space: SearchSpec | Mapping[str, Any] | str | Path) -> SearchSpec | Mapping[str, Any]:
    return space if isinstance(space, SearchSpec | Mapping) else load_search(search_file(str(space)))
