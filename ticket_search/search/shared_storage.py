"""Whether a machine reaches the storage of a search that another machine has begun."""

import socket

from ticket_search.errors import StorageError
from ticket_search.search.run_directory import check_writable, read_run
from ticket_search.spec.identity import digest
from ticket_search.storage.folder import Folder, open_folder

#: The folder of a level store with a note for each search that uses it.
SEARCHES = "searches"


def note_of(run_dir: Folder, run_id: str) -> str:
    """The name, in a level store, of a search's note that it uses the store."""
    place = digest(str(run_dir))[:8]  # a copy of the directory is a search of its own
    return f"{SEARCHES}/{run_id}.{place}.json"


def check_shared(store: str, run_dir: str, run_id: str) -> None:
    """See that this machine reaches a search's directory and its store.

    Raises:
        StorageError: names the machine and what it does not reach.
    """
    folder, wrong = open_folder(run_dir), None
    run = read_run(folder)
    if run is None or run.run_id != run_id:
        wrong = run_dir
    elif open_folder(store).read(note_of(folder, run_id)) is None:
        wrong = store
    if wrong is not None:
        raise StorageError(
            f"on {socket.gethostname()} {wrong!r} is not what the search writes to; give an --output, and a "
            "--store, that every machine reaches under that name: a folder on NFS, or s3://bucket/path"
        )
    check_writable(open_folder(store))
