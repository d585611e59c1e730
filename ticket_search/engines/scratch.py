"""Scratch folders for engines, on the local disk of the machine that runs the search."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ticket_search.storage.lease import is_running


@contextmanager
def scratch_folder(engine: str) -> Iterator[Path]:
    """Create a folder that is removed when the block ends.

    Folders left behind by killed processes are removed first, because they may contain whole data sets.

    Args:
        engine: the name of the engine; the folder's name contains it and the process id.
    """
    prefix = f"ticket_search_{engine}_"
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*_*"):
        pid = folder.name.removeprefix(prefix).partition("_")[0]
        if pid.isdigit() and not is_running(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{prefix}{os.getpid()}_") as folder_name:
        yield Path(folder_name)
