"""Checks that a machine can access the storage of a search that was started on another machine."""

import socket
from functools import lru_cache
from pathlib import Path

from ticket_search.config.identity import digest
from ticket_search.errors import RunDirectoryError, StorageError
from ticket_search.runs.directory import check_writable, read_run
from ticket_search.storage.folder import Folder, open_folder
from ticket_search.storage.local import LocalFolder

#: The folder of a level store that contains a note for each search that uses the store.
SEARCHES = "searches"


def note_of(run_dir: Folder, run_id: str) -> str:
    """Return the name of a search's note in the level store that the search uses."""
    location = digest(str(run_dir))[:8]  # a copy of the run directory has the same run id but needs a separate note
    return f"{SEARCHES}/{run_id}.{location}.json"


def notes_folder(store: Folder) -> list[Path]:
    """Return a list with the folder of a store's notes, or an empty list if the store is in object storage."""
    return [store.path / SEARCHES] if isinstance(store, LocalFolder) else []


def check_shared(store: str, run_dir: str, run_id: str) -> None:
    """Check that this machine can access a search's run directory and store.

    Raises:
        StorageError: this machine cannot access them; the message names the machine and the folder.
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
            f"on {socket.gethostname()}, {wrong!r} is not the folder that the search uses; give an --output and a "
            "--store that every machine can access under the same name: a folder on NFS, or s3://bucket/path"
        )


@lru_cache(maxsize=8)
def check_shared_once(store: str, run_dir: str, run_id: str) -> None:
    """Call `check_shared`, unless an earlier call in this process succeeded."""
    check_shared(store, run_dir, run_id)
