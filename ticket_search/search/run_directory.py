"""A run directory: it belongs to one search, and one process at a time runs it."""

import fcntl
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ticket_search.errors import RunDirectoryError
from ticket_search.files import write_whole
from ticket_search.spec.loading import load_search
from ticket_search.spec.search import SearchSpec

SPEC_FILE = "search.yaml"
LOCK_FILE = "run.lock"


def read_spec(run_dir: Path) -> SearchSpec:
    """The search that a directory holds.

    Raises:
        RunDirectoryError: it holds none.
    """
    path = run_dir / SPEC_FILE
    if not path.is_file():
        raise RunDirectoryError(f"{str(run_dir)!r} is not a run directory: it has no {SPEC_FILE}")
    return load_search(path)


def check_same_search(run_dir: Path, spec: SearchSpec) -> None:
    """Refuse a directory that holds another search, or things that are not a search's, or that is being run.

    Raises:
        RunDirectoryError: quotes the directory, and says where the search could go.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise RunDirectoryError(f"{str(run_dir)!r} is a file; give --output a directory")
    if (run_dir / SPEC_FILE).is_file():
        if is_held(run_dir):
            raise RunDirectoryError(f"{str(run_dir)!r} is being run by {(run_dir / LOCK_FILE).read_text().strip()}")
        _check_identity(run_dir, spec)
    elif run_dir.is_dir() and any(path.name != LOCK_FILE for path in run_dir.iterdir()):
        raise RunDirectoryError(f"{str(run_dir)!r} is not empty and holds no search; give another --output")


def check_writable(folder: Path) -> None:
    """See that a folder is there or can be made, and can be written to; leaves nothing behind.

    Raises:
        RunDirectoryError: quotes the folder and the system's reason.
    """
    try:
        nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise RunDirectoryError(f"cannot write to {str(folder)!r}: {error.strerror or error}") from None


def missing_folders(folder: Path) -> list[Path]:
    """Of this folder and those it is in, the ones that are not there yet, from the inside out."""
    folder = folder.absolute()
    return [path for path in (folder, *folder.parents) if not path.exists()]


def remove(run_dir: Path, made: list[Path]) -> None:
    """Remove a run directory, and of the folders that were `made` for it those that nobody else uses by now."""
    shutil.rmtree(run_dir)
    for folder in made[1:]:
        try:
            folder.rmdir()
        except OSError:  # another search has moved in meanwhile
            return


@contextmanager
def hold(run_dir: Path, spec: SearchSpec) -> Iterator[bool]:
    """Make the directory this search's, and keep other processes from running it meanwhile.

    Yields:
        Whether it is new: held no search before.

    Raises:
        RunDirectoryError: another process runs it; the message says which. Or it holds another search by now.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / LOCK_FILE).open("a+") as lock:
        if not _lock(lock):
            lock.seek(0)
            raise RunDirectoryError(f"{str(run_dir)!r} is being run by {lock.read().strip()}")
        is_new = not (run_dir / SPEC_FILE).exists()
        _check_identity(run_dir, spec)
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        write_whole(run_dir / SPEC_FILE, spec.to_yaml().encode())
        yield is_new


def _lock(file: IO[str]) -> bool:
    """Whether the lock could be had. `is_held` takes it for an instant, hence a second and a third try."""
    for _ in range(3):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.1)
        else:
            return True
    return False


def _check_identity(run_dir: Path, spec: SearchSpec) -> None:
    if not (run_dir / SPEC_FILE).is_file():
        return
    there = read_spec(run_dir)
    if there.identity() != spec.identity():
        raise RunDirectoryError(
            f"{str(run_dir)!r} holds another search ({there.name!r}, which differs in "
            f"{', '.join(_differences(there, spec))}); give another --output, or remove the directory"
        )


def is_held(run_dir: Path) -> bool:
    """Whether a process runs the directory now."""
    try:
        with (run_dir / LOCK_FILE).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False


def _differences(there: SearchSpec, here: SearchSpec) -> list[str]:
    fields = [n for n in SearchSpec.model_fields if n not in ("resources", "data_dir", "store")]
    return [name for name in fields if getattr(there, name) != getattr(here, name)]
