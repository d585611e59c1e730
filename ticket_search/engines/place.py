"""Where a search's results go."""

from dataclasses import dataclass

from ticket_search.storage.folder import Folder


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a search's results go.

    Attributes:
        run_dir: the run directory.
        store: the level store.
        run_id: tells this run from every other.
    """

    run_dir: Folder
    store: Folder
    run_id: str
