"""The locations that a running search writes to."""

from dataclasses import dataclass

from ticket_search.storage.folder import Folder


@dataclass(frozen=True, kw_only=True)
class Place:
    """The locations that a running search writes to, and the id of the run.

    Attributes:
        run_dir: the run directory.
        store: the level store.
        run_id: the unique id of this run.
    """

    run_dir: Folder
    store: Folder
    run_id: str
