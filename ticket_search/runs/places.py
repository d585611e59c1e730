"""Where a search's level store and its data sets lie."""

from pathlib import Path

from ticket_search.config.search import SearchSpec
from ticket_search.storage.folder import Folder, open_folder


def store_folder(spec: SearchSpec, run_dir: Folder) -> Folder:
    """The level store: the one that the search names, else ``store/`` of its run directory."""
    return open_folder(spec.store) if spec.store else run_dir / "store"


def data_path(spec: SearchSpec) -> Path:
    """The folder of the data sets, absolute; ``data/`` in the working directory where the search names none."""
    return Path(spec.data_dir or "data").absolute()
