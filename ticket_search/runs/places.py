"""The locations of a search's level store and data sets."""

from pathlib import Path

from ticket_search.config.search import SearchSpec
from ticket_search.storage.folder import Folder, open_folder


def store_folder(spec: SearchSpec, run_dir: Folder) -> Folder:
    """Return the folder of the level store: the search's ``store`` or, if null, ``store/`` in its run directory."""
    return open_folder(spec.store) if spec.store else run_dir / "store"


def data_path(spec: SearchSpec) -> Path:
    """Return the absolute path of the folder of data sets: the search's ``data_dir`` or, if null, ``data/``."""
    return Path(spec.data_dir or "data").absolute()
