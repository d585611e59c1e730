"""Whether a machine reaches the storage of a search that another machine has begun."""

import socket
from functools import lru_cache
from pathlib import Path

from ticket_search.config.identity import digest
from ticket_search.errors import RunDirectoryError, StorageError
from ticket_search.runs.directory import check_writable, read_run
from ticket_search.storage.folder import Folder, open_folder
from ticket_search.storage.local import LocalFolder

#: The folder of a level store with a note for each search that uses it.
SEARCHES = "searches"


def note_of(run_dir: Folder, run_id: str) -> str:
    """The name, in a level store, of a search's note that it uses the store."""
    place = digest(str(run_dir))[:8]  # a copy of the directory is a search of its own
    return f"{SEARCHES}/{run_id}.{place}.json"


def notes_folder(store: Folder) -> list[Path]:
    """The folder of those notes, where it is one that a disk has."""
    return [store.path / SEARCHES] if isinstance(store, LocalFolder) else []


def check_shared(store: str, run_dir: str, run_id: str) -> None:
    """See that this machine reaches a search's directory and its store.

    Raises:
        StorageError: names the machine and what it does not reach, or cannot write to.
    """
    folder, wrong = open_folder(run_dir), None
    try:
        run = read_run(folder)
        check_writable(open_folder(store))
    except RunDirectoryError as error:
        raise StorageError(f"on {socket.gethostname()}: {error}") from None
    if run is None or run.run_id != run_id:
        wrong = run_dir
    elif open_folder(store).read(note_of(folder, run_id)) is None:
        wrong = store
    if wrong is not None:
        raise StorageError(
            f"on {socket.gethostname()} {wrong!r} is not what the search writes to; give an --output, and a "
            "--store, that every machine reaches under that name: a folder on NFS, or s3://bucket/path"
        )


@lru_cache(maxsize=8)
def check_shared_once(store: str, run_dir: str, run_id: str) -> None:
    """As `check_shared`; where it is shared, a process does not look again."""
    check_shared(store, run_dir, run_id)
