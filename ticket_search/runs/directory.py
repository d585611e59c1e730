"""Run directories. Each contains one search, which only one process at a time may run."""

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import ticket_search
from ticket_search.config.base import Spec
from ticket_search.config.loading import parse_search
from ticket_search.config.search import CHANGEABLE_SETTINGS, PLACES, SearchSpec
from ticket_search.config.space import dotted
from ticket_search.errors import RunDirectoryError, StorageError
from ticket_search.runs.places import store_folder
from ticket_search.storage.folder import Folder
from ticket_search.storage.lease import EXPIRY_SECONDS, Lease, Leases, Owner
from ticket_search.storage.local import LocalFolder

SPEC_FILE = "search.yaml"
RUN_FILE = "run.json"
#: The folder of the files that list the copies trained by `stability`.
COPIES = "copies"
LOCKS = "lock"
_LOCK = "run"
_STOP_FILE = "stop.json"
_TRIES = 4


@dataclass(frozen=True, kw_only=True)
class Run:
    """The identity of a run, which stays the same if its directory is moved.

    Attributes:
        run_id: a random id.
        created: when the run was started, in Unix seconds.
        version: the version of ticket_search that started the run.
        engine: the engine that last ran the search; comparisons of runs ignore it.
    """

    run_id: str
    created: float
    version: str
    engine: str = field(default="ray", compare=False)


@dataclass(frozen=True, kw_only=True)
class Hold:
    """A run directory that this process has locked to run its search.

    Attributes:
        is_new: whether the directory contained no search before.
        before: the search as it was last run; None if the directory is new.
        run: the identity of the run.
        lease: the lock of the directory.
    """

    is_new: bool
    before: SearchSpec | None
    run: Run
    lease: Lease


def read_spec(run_dir: Folder, settings: tuple[str, ...] = ()) -> SearchSpec:
    """Read the search in a run directory, and apply ``KEY=VALUE`` settings to it.

    Raises:
        RunDirectoryError: the directory contains no search, or the file of the search is damaged.
        SpecError: the settings are not valid.
    """
    data = run_dir.read(SPEC_FILE)
    if data is None:
        raise RunDirectoryError(f"{str(run_dir)!r} is not a run directory: it has no {SPEC_FILE}")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise RunDirectoryError(f"{run_dir.place(SPEC_FILE)!r} is damaged: {error}") from None
    return parse_search(text, run_dir.place(SPEC_FILE), settings, is_checked=not settings)


def spelled_as_before(run_dir: Folder, spec: SearchSpec) -> SearchSpec:
    """Return the search with its searched fields spelled as they are in the existing run directory.

    The columns of the existing tables are named after these spellings. ``retrain``, ``pruning.retrain`` and, in files
    of earlier versions, ``trajectory.retrain`` are the same field.
    """
    if run_dir.read(SPEC_FILE) is None:
        return spec
    before = read_spec(run_dir)
    names = {dotted(name): name for name in before.space}
    if list(spec.space) == list(before.space) or spec.identity() != before.identity():
        return spec

    def respelled(values: Mapping[str, Any]) -> dict[str, Any]:
        return {names[dotted(name)]: value for name, value in values.items()}

    points = None if spec.points is None else tuple(map(respelled, spec.points))
    return spec.model_copy(update={"space": respelled(spec.space), "points": points})


def check_same_search(run_dir: Folder, spec: SearchSpec) -> None:
    """Check that a directory is empty or contains this search, and that no process on this machine is running it.

    Raises:
        RunDirectoryError: the directory is in use, or contains a different search or unrelated files.
    """
    if isinstance(run_dir, LocalFolder) and run_dir.path.exists() and not run_dir.path.is_dir():
        raise RunDirectoryError(f"{str(run_dir)!r} is not a directory; give another --output")
    if run_dir.read(SPEC_FILE) is not None:
        if (owner := held_by(run_dir)) is not None and owner.is_here:
            raise _being_run(run_dir, owner)
        _check_identity(run_dir, spec)
    elif not _is_empty(run_dir):
        raise RunDirectoryError(f"{str(run_dir)!r} is not empty and contains no search; give another --output")


def _is_empty(run_dir: Folder) -> bool:
    if isinstance(run_dir, LocalFolder):
        # Ignore the lock and the partial file that a process leaves behind if it is killed soon after its start.
        names = [path.name for path in run_dir.path.iterdir()] if run_dir.path.is_dir() else []
        return all(name == LOCKS or (name.startswith(".") and name.endswith(".partial")) for name in names)
    return all(file.name.startswith(f"{LOCKS}/") for file in run_dir.files(recursive=True))


def check_writable(folder: Folder) -> None:
    """Check that a folder can be written to, without leaving files in it.

    Raises:
        RunDirectoryError: the folder cannot be written to; the message quotes the folder and the system's reason.
    """
    if isinstance(folder, LocalFolder):
        missing = missing_folders(folder)
        nearest = missing[-1].parent if missing else folder.path
        if not nearest.is_dir():
            raise RunDirectoryError(f"cannot write to {str(folder)!r}: {str(nearest)!r} is not a directory")
        if broken := next((path for path in missing if path.is_symlink()), None):
            raise RunDirectoryError(f"cannot write to {str(folder)!r}: the symbolic link {str(broken)!r} is broken")
        probe: Folder = LocalFolder(nearest)
    else:
        probe = folder / LOCKS
    name = f".{uuid4().hex}.partial"
    try:
        probe.write(name, b"")
        probe.remove(name)
    except StorageError as error:
        reason = str(error).partition(": ")[2] or str(error)
        raise RunDirectoryError(f"cannot write to {str(folder)!r}: {reason}") from None


def missing_folders(folder: Folder) -> list[Path]:
    """Return the folders that must be created for a local folder to exist, innermost first."""
    if not isinstance(folder, LocalFolder):
        return []
    return [path for path in (folder.path, *folder.path.parents) if not path.exists()]


def empty(run_dir: Folder) -> None:
    """Remove all files in a run directory except hidden ones, and the folders that this leaves empty."""
    run_dir.remove_all()
    run_dir.sweep()
    if isinstance(run_dir, LocalFolder):
        for folder in sorted((path for path in run_dir.path.rglob("*") if path.is_dir()), reverse=True):
            try:
                folder.rmdir()
            except OSError:  # the folder is not empty, because another search is already using it
                return


@contextmanager
def locked(run_dir: Folder, say: Callable[[str], None] = lambda notice: None) -> Iterator[Lease]:
    """Lock a run directory until the block ends. Unlike `hold`, this does not write the search into the directory.

    Args:
        run_dir: the directory.
        say: receives notices about the lock.

    Raises:
        RunDirectoryError: another process holds the lock; the message says which process.
    """
    with _acquire(run_dir, say) as lease:
        for owner in lease.broken:
            say(f"broke the lock of {owner}, which is no longer running")
        yield lease


@contextmanager
def hold(
    run_dir: Folder,
    spec: SearchSpec,
    say: Callable[[str], None] = lambda notice: None,
    *,
    engine: str | None = None,
) -> Iterator[Hold]:
    """Lock a run directory until the block ends, and write the search into it.

    The lock of a dead process is broken: at once if the process was on this machine, and otherwise once the lock has
    not been renewed for a minute.

    Args:
        run_dir: the directory.
        spec: the search.
        say: receives notices about the lock.
        engine: the engine to record in `Run`; None keeps the recorded engine.

    Raises:
        RunDirectoryError: another process holds the lock (the message says which process), or the directory now
            contains a different search.
    """
    with locked(run_dir, say) as lease:
        data = run_dir.read(SPEC_FILE)
        before = None if data is None else _check_identity(run_dir, spec)
        # Write this file first, because a later `run` would refuse a directory that contains files but no search.
        run_dir.write(SPEC_FILE, spec.to_yaml().encode())
        noted = read_run(run_dir)
        run = noted or Run(run_id=uuid4().hex, created=time.time(), version=ticket_search.__version__)
        run = replace(run, engine=engine or run.engine)
        if noted is None or noted.engine != run.engine:
            run_dir.write(RUN_FILE, json.dumps(asdict(run)).encode())
        run_dir.remove(_STOP_FILE)
        run_dir.sweep()
        yield Hold(is_new=data is None, before=before, run=run, lease=lease)


def held_by(run_dir: Folder) -> Owner | None:
    """Return the process that holds the lock, as far as a single listing of files can tell; None if there is none."""
    return Leases(run_dir / LOCKS).owner(_LOCK)


def request_stop(run_dir: Folder) -> Owner:
    """Ask the process that is running a search to stop after the levels that are now being trained.

    Returns:
        The process that was asked to stop.

    Raises:
        RunDirectoryError: the directory is not a run directory, or no process is running its search.
    """
    read_spec(run_dir)
    owner = held_by(run_dir)
    if owner is None:
        raise RunDirectoryError(f"no search is running in {str(run_dir)!r}, so there is nothing to stop")
    run_dir.write(_STOP_FILE, json.dumps({"time": time.time()}).encode())
    return owner


def is_stop_requested(run_dir: Folder) -> bool:
    """Return whether the process that is running the search has been asked to stop."""
    return run_dir.read(_STOP_FILE) is not None


def differences(before: Spec, now: Spec) -> list[str]:
    """Return the dotted names of the fields in which two specifications differ."""
    one, other = (_flat(spec.model_dump(mode="json")) for spec in (before, now))
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


def _acquire(run_dir: Folder, say: Callable[[str], None]) -> Lease:
    leases = Leases(run_dir / LOCKS)
    started = time.monotonic()
    waiting, tries = False, 0
    while isinstance(lease := leases.try_acquire(_LOCK), Owner):
        # An owner on this machine is certainly alive. If the owner is on another machine, wait until its lock
        # would have expired.
        tries += 1
        if lease.is_here and tries < _TRIES:  # two processes that start together may both withdraw, so try again
            time.sleep(random.uniform(0.02, 0.2))
            continue
        if lease.is_here or time.monotonic() - started > 1.5 * EXPIRY_SECONDS:
            raise _being_run(run_dir, lease)
        if not waiting:
            say(f"{str(run_dir)!r} was being run by {lease}; waiting {EXPIRY_SECONDS:.0f} s to see whether it still is")
        waiting = True
        time.sleep(1.0)
    return lease


def _being_run(run_dir: Folder, owner: Owner) -> RunDirectoryError:
    return RunDirectoryError(f"{str(run_dir)!r} is being run by {owner}")


def read_run(run_dir: Folder) -> Run | None:
    """Read the identity of the run in a directory; return None if the directory has no run.

    Raises:
        RunDirectoryError: the file is damaged.
    """
    data = run_dir.read(RUN_FILE)
    try:
        return None if data is None else Run(**json.loads(data))
    except (ValueError, TypeError) as error:
        raise RunDirectoryError(
            f"{run_dir.place(RUN_FILE)!r} is damaged: {error}; remove it, and `ticket-search resume` writes a new one"
        ) from None


def _check_identity(run_dir: Folder, spec: SearchSpec) -> SearchSpec:
    existing = read_spec(run_dir)
    if existing.identity() != spec.identity():
        changeable = (*PLACES, *(f"search.{setting}" for setting in CHANGEABLE_SETTINGS))
        fields = [name for name in differences(existing, spec) if not name.startswith(changeable)]
        store = store_folder(existing, run_dir)
        raise RunDirectoryError(
            f"{str(run_dir)!r} contains another search ({existing.name!r}, which differs in {', '.join(fields)}); "
            f"give another --output, and --store '{store}' to reuse the levels that both searches have in common"
        )
    return existing


def _flat(value: object, path: str = "") -> dict[str, object]:
    if not isinstance(value, dict):
        return {path: value}
    return {
        name: inner
        for key, part in value.items()
        for name, inner in _flat(part, f"{path}.{key}" if path else key).items()
    }
