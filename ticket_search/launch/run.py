"""Runs a search in a run directory, from the beginning or from where an earlier run stopped."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from ticket_search.config.imports import user_code
from ticket_search.config.search import SearchSpec
from ticket_search.engines.engine import Engine, is_local, open_engine
from ticket_search.engines.job import Shared
from ticket_search.engines.place import Place
from ticket_search.errors import SpecError, TicketSearchError
from ticket_search.launch import disk, preflight
from ticket_search.launch.executor import with_executor
from ticket_search.runs.directory import (
    Hold,
    check_same_search,
    check_writable,
    differences,
    empty,
    hold,
    is_stop_requested,
    missing_folders,
    spelled_as_before,
)
from ticket_search.runs.places import store_folder
from ticket_search.runs.sharing import note_of, notes_folder
from ticket_search.runs.store_use import register
from ticket_search.search.driver import SearchDriver
from ticket_search.search.reports import Listener, Progress
from ticket_search.storage.folder import Folder, Location, open_folder
from ticket_search.storage.remote import impatient
from ticket_search.store.level_store import Entry, LevelStore

Say = Callable[[str], None]


def run_search(
    spec: SearchSpec,
    run_dir: Location,
    *,
    engine: str = "ray",
    address: str | None = None,
    listener: Listener = lambda progress, row: None,
    on_start: Callable[[Progress], None] = lambda progress: None,
    entries: Mapping[str, Entry] = {},
    say: Say = lambda notice: None,
) -> Progress:
    """Run a search to its end, or until it is asked to stop.

    Args:
        spec: the search.
        run_dir: the run directory, a path or a URI of object storage. If it contains this search, the search resumes.
        engine: where trajectories run: ``inline``, ``processes`` or ``ray``.
        address: the address of a Ray cluster; see `engines.ray.connection.connect`.
        listener: called when a trajectory ends, with the progress and the row of the trajectory in `trajectories`.
        on_start: called once with the progress object, which is kept up to date from then on.
        entries: tickets of other searches, by key, to put into the level store before the search starts.
        say: receives notices for the user: the plan, the disk space that the search will need, and expired locks.

    Returns:
        The progress at the end.

    Raises:
        SpecError: the search cannot be run as written. Nothing was started, and no files were left behind.
        StorageError: the search had to stop, for example because the disk is full. Run it again to resume.
        TicketSearchError: the search had to stop for another reason.
    """
    folder = open_folder(run_dir)
    _check_modules(spec, engine)
    spec = spelled_as_before(folder, with_executor(folder, spec))
    store = store_folder(spec, folder)
    checked = _checked(spec, folder, is_local(engine, address), entries)
    missing = [*missing_folders(store), *missing_folders(folder)]
    with hold(folder, spec, say, engine=engine) as held, ExitStack() as stack:
        place = Place(run_dir=folder, store=store, run_id=held.run.run_id)
        try:
            for line in (*checked.notices, *_changes(held, spec)):
                say(line)
            search = _driver(spec, folder, held, listener, say)
            _say_what_is_trained_again(search, store, say)
            on_start(search.progress)
            opened = stack.enter_context(open_engine(engine, address, room=checked.data_size))
            for line in opened.plan(spec):
                say(line)
            register(store, folder, held.run, spec)
            opened.check_storage(place)
            data = opened.share(checked.take_data())
            for key, entry in entries.items():
                LevelStore(store).save(key, entry)
            if held.is_new:
                say(disk.describe(spec, disk.estimate(spec, checked.sizes), store))
        except SpecError:
            if held.is_new:
                _withdraw(store, folder, held, missing)
            raise
        _run(opened, search, place, data, held)
        return search.progress


def _driver(spec: SearchSpec, folder: Folder, held: Hold, listener: Listener, say: Say) -> SearchDriver:
    return SearchDriver(
        spec,
        folder,
        listener,
        say=say,
        is_asked_to_stop=lambda: is_stop_requested(folder),
        guard=lambda: _check_held(folder, held),
    )


def _say_what_is_trained_again(search: SearchDriver, store: Folder, say: Say) -> None:
    """Tell the user how many levels must be trained again to rebuild the tables, because the store lacks them."""
    keys = search.level_keys_to_rebuild
    if keys and (removed := keys - LevelStore(store).keys()):
        say(
            f"the level store no longer has {len(removed)} of the {len(keys)} levels whose rows must be rebuilt; "
            f"{len(removed)} will be trained again"
        )


def _run(engine: Engine, search: SearchDriver, place: Place, data: Shared, held: Hold) -> None:
    """Drive a prepared search to its end, and flush its tables even if it fails."""
    try:
        engine.run(search, place, data)
        if search.halted:
            raise search.halted
        search.flush()
        held.lease.confirm()  # the directory may have been moved away
        _check_held(place.run_dir, held)
    except BaseException as error:
        # Do not retry writes: after an interrupt, the process must exit within ten seconds even if it cannot reach the
        # storage. If flushing fails too, report only the error that ended the search.
        with impatient(), suppress(TicketSearchError):
            if held.lease.confirm():  # otherwise the directory may have been moved, and a flush would recreate it
                search.flush()
        if isinstance(error, SpecError):
            # While a search runs, a SpecError is a runtime failure (exit code 1), not bad input (exit code 2).
            raise TicketSearchError(str(error)) from error
        raise


def _withdraw(store: Folder, folder: Folder, held: Hold, made: list[Path]) -> None:
    """Remove all files that a search wrote to its run directory and to a shared store before it failed to start."""
    store.remove(note_of(folder, held.run.run_id))
    empty(folder)
    for path in sorted({*made, *notes_folder(store)}, key=lambda path: len(path.parts), reverse=True):
        with suppress(OSError):  # another search may already be using the folder
            path.rmdir()


def dry_run(spec: SearchSpec, run_dir: Location, *, engine: str = "ray", address: str | None = None, say: Say) -> None:
    """Report where a search's trajectories would run and how much disk space they would need; leave no files behind.

    Args:
        spec: the search.
        run_dir: the run directory that the search would use.
        engine: see `run_search`.
        address: see `run_search`.
        say: receives the plan, line by line.

    Raises:
        SpecError: the search cannot be run as written.
    """
    folder = open_folder(run_dir)
    spec = with_executor(folder, spec)
    checked = _checked(spec, folder, is_local(engine, address), {})
    for notice in checked.notices:
        say(notice)
    with open_engine(engine, address) as opened:
        for line in opened.plan(spec):
            say(line)
    say(disk.describe(spec, disk.estimate(spec, checked.sizes), store_folder(spec, folder)))


def _check_modules(spec: SearchSpec, engine: str) -> None:
    """Check that worker processes can import the user code.

    Raises:
        SpecError: some code is defined in a script or notebook, and the engine uses worker processes.
    """
    for name in user_code(spec):
        if engine != "inline" and name.startswith("__main__:"):
            raise SpecError(
                f"{name!r} is defined in the script or notebook that runs the search, which workers cannot import; put "
                "it into a module, or use engine 'inline'"
            )


def _checked(spec: SearchSpec, folder: Folder, is_here: bool, entries: Mapping[str, Entry]) -> preflight.Checked:
    """Check a search's directories, data, networks and tickets before anything is started."""
    store = store_folder(spec, folder)
    check_same_search(folder, spec)
    check_writable(folder)
    check_writable(store)
    levels = LevelStore(store)
    return preflight.check(
        spec,
        local=is_here,
        entry=lambda key: entries.get(key) or levels.load(key),
    )


def _check_held(folder: Folder, held: Hold) -> None:
    if held.lease.is_lost:
        raise TicketSearchError(
            f"another process has taken over {str(folder)!r}, because this one did not renew its lock for a minute"
        )


def _changes(held: Hold, spec: SearchSpec) -> list[str]:
    """Return a line for each setting that has changed since the search was last run."""
    if held.before is None:
        return []
    before, now = held.before.model_dump(mode="json"), spec.model_dump(mode="json")
    changes = []
    for name in differences(held.before, spec):
        old, new = _at(before, name), _at(now, name)
        changes.append(f"{name} was {old} and is now {new}")
    return changes


def _at(plain: object, path: str) -> object:
    for part in path.split("."):
        plain = plain.get(part) if isinstance(plain, dict) else None
    return "null" if plain is None else plain
