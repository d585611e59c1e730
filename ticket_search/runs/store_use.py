"""Lists the files of a level store, finds those that no search needs, and removes them."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ticket_search.config.identity import rewind_key
from ticket_search.config.pruning import PruningSpec
from ticket_search.config.search import SearchSpec
from ticket_search.config.space import Range, dotted
from ticket_search.errors import RunDirectoryError, SpecError
from ticket_search.results.events import read_events
from ticket_search.results.reading import Results, load_results
from ticket_search.runs.directory import COPIES, SPEC_FILE, Run, held_by, read_run, read_spec
from ticket_search.runs.places import store_folder
from ticket_search.runs.sharing import SEARCHES, note_of
from ticket_search.search.reports import SETTLED
from ticket_search.search.suggestions import SuggestionRecord
from ticket_search.storage.folder import File, Folder, open_folder
from ticket_search.storage.lease import Leases
from ticket_search.storage.local import LocalFolder

#: Folders of a store that contain no entries.
_CHECKPOINTS, _DAMAGED, _LEASES = "checkpoints", "damaged", "leases"
#: The age in seconds after which a partial file is certainly no longer being written.
_OLD_SECONDS = 3600.0
_UNKNOWN = "of no search"
_KINDS = ("levels", "rewind weights", "tickets", "copies", _CHECKPOINTS, _DAMAGED, _UNKNOWN)
#: Matches the names of a store's files. Files with other names do not belong to the store and are never removed.
_FILE = re.compile(
    rf"([0-9a-f]{{2}})/\1[0-9a-f]{{30}}\.safetensors|{_CHECKPOINTS}/[0-9a-f]{{32}}\.safetensors"
    rf"|{_DAMAGED}/[0-9a-f]{{32}}\.safetensors\.\d+"
)
#: Events that contain a level key together with its trajectory and level.
_LEVEL_EVENTS = ("level_started", "level_finished", "level_reused")

Best = Callable[[Results], pd.DataFrame]


@dataclass(frozen=True, kw_only=True)
class StoreUse:
    """A store and the searches that use it.

    Attributes:
        folder: the store.
        kinds: the files of each kind: ``levels``, ``rewind weights``, ``tickets`` (of `transfer`), ``copies`` (of
            `stability`), ``checkpoints``, ``damaged`` and ``of no search``.
        searches: the run directories that use the store.
        gone: the run directories that used the store but are no longer at their location. It is unknown which entries
            they need, so all entries count as needed, unless `forget_gone` was true.
        unneeded: the files that no search needs.
    """

    folder: Folder
    kinds: dict[str, list[File]]
    searches: list[str]
    gone: list[str]
    unneeded: list[File]


def register(store: Folder, run_dir: Folder, run: Run, spec: SearchSpec) -> None:
    """Write a note in a level store to record that a search uses the store."""
    note = {"run_dir": str(run_dir), "name": spec.name}
    store.write(note_of(run_dir, run.run_id), json.dumps(note).encode())


def inspect(directory: Folder, best: Best | None = None, *, forget_gone: bool = False) -> StoreUse:
    """Determine which files of a store are needed by the searches that use it.

    Args:
        directory: a run directory or a store.
        best: a function that selects tickets (``trajectory_id``, ``level``) from a search's tables. A trajectory that
            has ended then needs only the entries that its selected tickets depend on. If None, it needs all its levels.
        forget_gone: whether to assume that searches no longer at their location need nothing.

    Raises:
        RunDirectoryError: `directory` is neither a run directory nor a store, one of the store's searches is running,
            or a note is damaged.
    """
    store, searches, gone = _searches(directory)
    levels: set[str] = set()
    rewinds: set[str] = set()
    needed: set[str] = set()
    tickets: set[str] = set()
    copies: set[str] = set()
    unfinished = False
    for run_dir in searches:
        if (owner := held_by(run_dir)) is not None:
            raise RunDirectoryError(f"{str(run_dir)!r} is being run by {owner}; wait until the search has ended")
        spec, results = read_spec(run_dir), load_results(run_dir)
        reached = _levels(run_dir, spec, results)
        levels |= set(reached["level_key"])
        rewinds |= set(_rewind_keys(spec, reached))
        unfinished = unfinished or not _is_finished(spec, results)
        tickets |= _tickets(spec)
        copies |= set(_copies(run_dir))
        needed |= tickets | (copies if best is None else set()) | set(_needed(spec, results, reached, best))
    kinds: dict[str, list[File]] = {kind: [] for kind in _KINDS}
    spared = bool(gone) and not forget_gone
    unneeded = []
    files = [file for file in store.files(recursive=True) if _FILE.fullmatch(file.name)]
    entries = {_key(file) for file in files if len(file.name.partition("/")[0]) == 2}
    for file in files:
        kind = _kind(file, {"levels": levels, "rewind weights": rewinds, "tickets": tickets, "copies": copies})
        kinds[kind].append(file)
        if kind == _CHECKPOINTS:
            # Nothing will resume from the checkpoint of a finished level, or of a search that has ended.
            if _key(file) in entries or not (unfinished or spared):
                unneeded.append(file)
        elif kind == _DAMAGED or (_key(file) not in needed and not spared):
            unneeded.append(file)
    return StoreUse(
        folder=store, kinds=kinds, searches=[str(run_dir) for run_dir in searches], gone=gone, unneeded=unneeded
    )


def prune(use: StoreUse) -> None:
    """Remove the files that no search needs, and the claims of dead processes."""
    for file in use.unneeded:
        use.folder.remove(file.name)
    shards = [f"{number:02x}" for number in range(256)]
    for name in (*shards, _CHECKPOINTS, _DAMAGED, _LEASES, SEARCHES):
        (use.folder / name).sweep(older_than_seconds=_OLD_SECONDS)
    leases = Leases(use.folder / _LEASES)
    for name in leases.names():
        leases.break_dead(name)


def _searches(directory: Folder) -> tuple[Folder, list[Folder], list[str]]:
    """Return the store, the run directories that use it, and the locations of run directories that are missing."""
    present: dict[str, Folder] = {}
    run_ids: set[str] = set()
    if isinstance(directory, LocalFolder) and _is_store_of(LocalFolder(directory.path.parent), directory):
        directory = LocalFolder(directory.path.parent)
    if directory.read(SPEC_FILE) is not None:
        store = store_folder(read_spec(directory), directory)
        run = read_run(directory)
        present[str(directory)] = directory
        run_ids |= {run.run_id} if run else set()
    else:
        store = directory
        if not _notes(store):
            raise RunDirectoryError(f"{str(directory)!r} is neither a run directory nor a level store")
    absent = {}
    for run_dir, run_id in _notes(store).items():
        if run_dir in present:
            continue
        folder = open_folder(run_dir)
        run = read_run(folder)
        if run is None or run.run_id != run_id:
            absent[run_dir] = run_id
        else:
            present[run_dir] = folder
            run_ids.add(run_id)
    # A store within a run directory moves with the directory, so notes about old locations are obsolete. With a shared
    # store, the run directory that was found may be a copy, and the original may still need entries.
    if any(_is_within(store, run_dir) for run_dir in present.values()):
        absent = {run_dir: run_id for run_dir, run_id in absent.items() if run_id not in run_ids}
    return store, list(present.values()), list(absent)


def _is_within(store: Folder, run_dir: Folder) -> bool:
    return str(store) == str(run_dir / "store")


def _is_store_of(run_dir: Folder, store: Folder) -> bool:
    return run_dir.read(SPEC_FILE) is not None and str(store_folder(read_spec(run_dir), run_dir)) == str(store)


def _notes(store: Folder) -> dict[str, str]:
    """Return the run ids of the searches that have a note in a store, by the location of their run directory."""
    notes = {}
    for file in (store / SEARCHES).files():
        if not re.fullmatch(r"[0-9a-f]{32}\.[0-9a-f]{8}\.json", file.name):
            continue
        try:
            run_dir = json.loads((store / SEARCHES).read(file.name) or b"")["run_dir"]
            notes[str(run_dir)] = file.name.partition(".")[0]
        except (ValueError, TypeError, KeyError):
            raise RunDirectoryError(
                f"{(store / SEARCHES).place(file.name)!r} is damaged, so it is unknown which search uses the "
                "store; remove the file, or resume that search, which rewrites it"
            ) from None
    return notes


def _tickets(spec: SearchSpec) -> set[str]:
    """Return the keys of the transferred tickets that a search trains."""
    searched = [domain for name, domain in spec.space.items() if dotted(name) == "pruning.ticket"]
    listed = [ticket for domain in searched if not isinstance(domain, Range) for ticket in domain]
    return {ticket for ticket in (*listed, spec.pruning.ticket) if ticket}


def _copies(run_dir: Folder) -> Iterator[str]:
    """Yield the keys of the copies that `stability` trained."""
    for file in (run_dir / COPIES).files():
        try:
            yield from map(str, json.loads((run_dir / COPIES).read(file.name) or b"[]"))
        except (ValueError, TypeError):
            raise RunDirectoryError(
                f"{(run_dir / COPIES).place(file.name)!r} is damaged, so it is unknown which copies it lists; remove it"
            ) from None


def _points(run_dir: Folder, spec: SearchSpec) -> dict[str, PruningSpec]:
    """Return the pruning settings of all suggested trajectories, by trajectory id."""
    points = {}
    for suggestion in SuggestionRecord(run_dir).read():
        with suppress(SpecError):  # a trajectory with incompatible values failed before its first level
            points[suggestion.trajectory_id] = spec.trajectory_at(suggestion.values, suggestion.seed).pruning
    return points


def _levels(run_dir: Folder, spec: SearchSpec, results: Results) -> pd.DataFrame:
    """List all levels that the search started.

    Unlike the tables, the events include diverged levels, and levels whose rows a killed driver had not yet written.
    """
    columns = ["trajectory_id", "level", "level_key", "rewind_iteration"]
    rows: list[dict[Any, Any]] = results.levels[columns].to_dict("records")
    pruning = _points(run_dir, spec)
    for event in read_events(run_dir):
        row = {name: event.get(name) for name in columns[:3]}
        if event["event"] in _LEVEL_EVENTS and row["trajectory_id"] in pruning and None not in row.values():
            rows.append(row | {"rewind_iteration": pruning[event["trajectory_id"]].rewind_iteration})
    levels = pd.DataFrame(rows, columns=columns).drop_duplicates(ignore_index=True)
    keep_weights = {name for name, settings in pruning.items() if settings.retrain != "weights"}
    return levels.assign(starts_from_parent=levels["trajectory_id"].isin(keep_weights))


def _needed(spec: SearchSpec, results: Results, levels: pd.DataFrame, best: Best | None) -> Iterator[str]:
    if best is None:
        yield from levels["level_key"]
        yield from _rewind_keys(spec, levels)
        return
    chosen = levels.merge(best(results)[["trajectory_id", "level"]])
    yield from chosen["level_key"]
    parents = chosen.loc[chosen["starts_from_parent"], ["trajectory_id", "level"]]
    yield from levels.merge(parents.assign(level=parents["level"] - 1))["level_key"]
    ended = results.trajectories.loc[results.trajectories["status"].isin(SETTLED), "trajectory_id"]
    unfinished = levels[~levels["trajectory_id"].isin(ended)]
    yield from unfinished["level_key"]
    kept = levels[levels["trajectory_id"].isin({*chosen["trajectory_id"], *unfinished["trajectory_id"]})]
    dense = levels[levels["level"] == 0] if not _is_finished(spec, results) else kept[kept["level"] == 0]
    yield from dense["level_key"]
    for key, iteration in zip(dense["level_key"], dense["rewind_iteration"], strict=True):
        yield rewind_key(key, int(iteration))
    if not _is_finished(spec, results):
        yield from _rewind_keys(spec, levels)


def _rewind_keys(spec: SearchSpec, levels: pd.DataFrame) -> Iterator[str]:
    dense = levels[levels["level"] == 0]
    for key in dense["level_key"].unique():
        for iteration in {*spec.rewind_iterations, *dense.loc[dense["level_key"] == key, "rewind_iteration"]}:
            yield rewind_key(key, int(iteration))


def _is_finished(spec: SearchSpec, results: Results) -> bool:
    ended = int(results.trajectories["status"].isin(SETTLED).sum())
    return spec.planned_trials is not None and ended >= spec.planned_trials


def _kind(file: File, keys: Mapping[str, set[str]]) -> str:
    folder = file.name.partition("/")[0]
    if folder in (_CHECKPOINTS, _DAMAGED):
        return folder
    return next((kind for kind, its_keys in keys.items() if _key(file) in its_keys), _UNKNOWN)


def _key(file: File) -> str:
    return file.name.rpartition("/")[2].partition(".")[0]
