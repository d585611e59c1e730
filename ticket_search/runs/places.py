"""Where a search keeps its level store and finds its data sets."""

from pathlib import Path

from ticket_search.config.search import SearchSpec
from ticket_search.storage.folder import Folder, open_folder


def store_folder(spec: SearchSpec, run_dir: Folder) -> Folder:
    """The level store: the folder that the search names, or else ``store/`` in its run directory."""
    return open_folder(spec.store) if spec.store else run_dir / "store"


def data_path(spec: SearchSpec) -> Path:
    """The absolute folder of the data sets: the one that the search names, or ``data/`` in the working directory."""
    return Path(spec.data_dir or "data").absolute()
