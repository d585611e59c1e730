"""Run a search in a directory, from its beginning or from wherever it stopped."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from ticket_search.config.search import SearchSpec
from ticket_search.errors import SpecError, TicketSearchError
from ticket_search.launch import disk, preflight
from ticket_search.runs.directory import (
    Hold,
    check_same_search,
    check_writable,
    differences,
    hold,
    is_stop_requested,
    missing_folders,
    remove,
)
from ticket_search.runs.places import store_folder
from ticket_search.runs.sharing import check_shared, note_of, notes_folder
from ticket_search.runs.store_use import register
from ticket_search.search.driver import Listener, Progress, SearchDriver
from ticket_search.storage.folder import Folder, Location, impatient, open_folder
from ticket_search.store.level_store import Entry, LevelStore

Say = Callable[[str], None]


def run_search(
    spec: SearchSpec,
    run_dir: Location,
    *,
    address: str | None = None,
    listener: Listener = lambda progress, row: None,
    on_start: Callable[[Progress], None] = lambda progress: None,
    entries: Mapping[str, Entry] = {},
    say: Say = lambda notice: None,
) -> Progress:
    """Run a search to its end, or until it is asked to stop.

    Args:
        spec: what to search.
        run_dir: where the results go, a path or a URI of object storage; a directory that holds this search is gone on
            from.
        address: of a Ray cluster; see `connection.connect`.
        listener: told of every trajectory that ends, with its row of `trajectories`.
        on_start: given, once, the object that says where the search stands from then on.
        entries: what its trajectories find in the level store, by key: tickets found elsewhere.
        say: told, in a line, of what the user should know: the disk it will take, a lock that was broken, ...

    Returns:
        Where the search stands at its end.

    Raises:
        SpecError: the search cannot be run as written; nothing was started and nothing is left behind.
        StorageError: it had to stop half-way, for want of room on the disk, say; run it again to go on.
        TicketSearchError: it had to stop for another reason.
    """
    folder = open_folder(run_dir)
    store = store_folder(spec, folder)
    checked = _checked(spec, folder, address, entries)
    from ticket_search.engines.ray.connection import connect, on_each_other_node, share
    from ticket_search.engines.ray.placement import plan
    from ticket_search.engines.ray.tune_hooks import run_on_ray

    missing = [*missing_folders(store), *missing_folders(folder)]
    with hold(folder, spec, say) as held, ExitStack() as stack:
        try:
            for change in _changes(held, spec):
                say(change)
            search = SearchDriver(
                spec,
                folder,
                listener,
                say=say,
                is_asked_to_stop=lambda: is_stop_requested(folder),
                guard=lambda: _check_held(folder, held),
            )
            on_start(search.progress)
            stack.enter_context(connect(address, room=checked.data_size))
            for line in plan(spec):
                say(line)
            register(store, folder, held.run, spec)
            on_each_other_node(check_shared, (str(store), str(folder), held.run.run_id))
            data = share(checked.take_data())
            for key, entry in entries.items():
                LevelStore(store).save(key, entry)
            if held.is_new:
                say(disk.describe(spec, disk.estimate(spec, checked.sizes), store))
        except SpecError:
            if held.is_new:
                _withdraw(store, folder, held, missing)
            raise
        try:
            run_on_ray(search, folder, held.run.run_id, data=data)
            search.flush()
            held.lease.confirm()  # the directory may have been moved away
            _check_held(folder, held)
        except BaseException:
            # An interrupt ends within ten seconds, whether or not the storage can be reached; an error says more.
            with impatient(), suppress(TicketSearchError):
                search.flush()
            raise
        return search.progress


def _withdraw(store: Folder, folder: Folder, held: Hold, made: list[Path]) -> None:
    """Leave nothing behind of a search that was not begun, in its directory or in a store of others'."""
    store.remove(note_of(folder, held.run.run_id))
    remove(folder, [])
    for path in sorted({*made, *notes_folder(store)}, key=lambda path: len(path.parts), reverse=True):
        with suppress(OSError):  # others use it by now
            path.rmdir()


def dry_run(spec: SearchSpec, run_dir: Location, *, address: str | None = None, say: Say) -> None:
    """Say where a search's trajectories would run and the disk they would take; nothing is left behind.

    Args:
        spec: what to search.
        run_dir: where the results would go.
        address: of a Ray cluster; see `connection.connect`.
        say: told the plan, in lines.

    Raises:
        SpecError: the search cannot be run as written.
    """
    folder = open_folder(run_dir)
    checked = _checked(spec, folder, address, {})
    from ticket_search.engines.ray.connection import connect
    from ticket_search.engines.ray.placement import plan

    with connect(address):
        for line in plan(spec):
            say(line)
    say(disk.describe(spec, disk.estimate(spec, checked.sizes), store_folder(spec, folder)))


def _checked(spec: SearchSpec, folder: Folder, address: str | None, entries: Mapping[str, Entry]) -> preflight.Checked:
    """Refuse what cannot be run, before anything is started."""
    store = store_folder(spec, folder)
    check_same_search(folder, spec)
    check_writable(folder)
    check_writable(store)
    levels = LevelStore(store)
    return preflight.check(
        spec,
        local=preflight.cluster_address(address) is None,
        entry=lambda key: entries.get(key) or levels.load(key),
    )


def _check_held(folder: Folder, held: Hold) -> None:
    if held.lease.is_lost:
        raise TicketSearchError(
            f"another process has taken {str(folder)!r} over, since this one gave no sign of life for a minute"
        )


def _changes(held: Hold, spec: SearchSpec) -> list[str]:
    """What is not as it was when the search was run last, and is accepted."""
    if held.before is None:
        return []
    before, now = held.before.model_dump(mode="json"), spec.model_dump(mode="json")
    changes = []
    for name in differences(held.before, spec):
        old, new = _at(before, name), _at(now, name)
        changes.append(f"{name} was {old} and is {new} from here on")
    return changes


def _at(plain: object, path: str) -> object:
    for part in path.split("."):
        plain = plain.get(part) if isinstance(plain, dict) else None
    return "null" if plain is None else plain
