"""Runs searches from Python, as ``ticket-search run`` does from the command line."""

import copy
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ticket_search.config.imports import find_user_modules
from ticket_search.config.loading import load_search, with_settings
from ticket_search.config.search import SearchSpec
from ticket_search.config.shipped import search_file
from ticket_search.errors import SpecError
from ticket_search.launch import run
from ticket_search.storage.folder import open_folder

if TYPE_CHECKING:
    from ticket_search.results.reading import Results

_PATH = (str, os.PathLike, type(None)), "a path or 's3://bucket/path'"
#: The allowed types of each argument, and the text that describes them in error messages.
_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "space": ((SearchSpec, Mapping, str, Path), "a file, the name of a shipped search, a dict or a SearchSpec"),
    "output": _PATH,
    "data_dir": _PATH,
    "store": _PATH,
    "address": ((str, type(None)), "the address of a Ray cluster, such as 'auto', or None"),
    "settings": ((Mapping, type(None)), "a dict such as {'training.iterations': 500}"),
}


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
    """Run a search to its end, and return its results. If the run directory already contains the search, resume it.

    Args:
        space: the search: a file, the name of a search that ships with the package (``"digits"``), the content of a
            file as a dict, or a `SearchSpec`.
        output: the run directory, a path or ``s3://bucket/path``; None means ``runs/<name of the search>``.
        engine: where trajectories run: ``inline`` (in this process, for debugging), ``processes`` (in processes on
            this machine, without Ray) or ``ray``.
        address: the address of a Ray cluster, such as ``auto`` on one of its nodes. None means the value of
            ``RAY_ADDRESS`` if it is set, and otherwise a cluster that is started on this machine.
        trials: the number of trajectories; replaces ``search.trials``.
        settings: values that replace those of the search, by dotted key, such as ``{"training.iterations": 500}``.
        data_dir: the folder of the data sets; replaces the search's ``data_dir``.
        store: a level store shared with other searches; replaces the search's ``store``.
        say: receives lines of text: the plan, the disk space that the search will need, and warnings.
        on_trajectory: called when a trajectory ends, with its row of ``trajectories``.

    Returns:
        The tables as DataFrames. The row of a failed trajectory in ``trajectories`` contains its error.

    Raises:
        SpecError: the search cannot be run as written, `output` contains a different search, or an argument has the
            wrong type. Nothing was started.
        StorageError: the storage failed, for example because the disk is full. Finished levels are kept, and the same
            call resumes the search.
        TicketSearchError: the search had to stop for another reason. Finished levels are kept in this case, too.
    """
    _check_types(space=space, output=output, data_dir=data_dir, store=store, address=address, settings=settings)
    _check_callable(say=say, on_trajectory=on_trajectory)
    find_user_modules()
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
    if isinstance(space, SearchSpec):
        return space
    if not isinstance(space, Mapping):
        return load_search(search_file(str(space)))
    try:
        return copy.deepcopy(dict(space))
    except Exception as error:  # copying may raise any error: a generator, for example, cannot be copied
        raise SpecError(f"space: {error}; give plain data: dicts, lists, strings, numbers, None") from error


def _check_types(**arguments: object) -> None:
    for name, value in arguments.items():
        types, words = _TYPES[name]
        keys = value if isinstance(value, Mapping) else ()
        if not isinstance(value, types) or not all(isinstance(key, str) for key in keys):
            raise SpecError(f"{name}: {value!r:.80} is not valid: give {words}")
        if _TYPES[name] is _PATH and isinstance(value, str) and not value.strip():
            raise SpecError(f"{name}: {value!r} is not valid: give {words}, or omit the argument")
        if isinstance(value, str) and "\0" in value:
            raise SpecError(f"{name}: {value!r:.80} is not valid: it contains a null character")


def _check_callable(**arguments: object) -> None:
    for name, value in arguments.items():
        if not callable(value):
            raise SpecError(f"{name}: {value!r:.80} is not callable: give a function that takes one argument")
