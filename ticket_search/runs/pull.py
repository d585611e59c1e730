"""Copies a search's results (tables, tickets, TensorBoard files, but not its level store) to a local directory."""

import os
import re
import subprocess
import tempfile
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ticket_search.errors import RunDirectoryError, StorageError
from ticket_search.runs.directory import COPIES, LOCKS, RUN_FILE, SPEC_FILE, check_writable, read_run, read_spec
from ticket_search.storage.folder import File, Folder, open_folder
from ticket_search.storage.local import LocalFolder

#: Folders that contain no results. They are skipped at every depth, because a run directory may contain the run
#: directory of its confirmation.
_LEFT_BEHIND = ("store", LOCKS, COPIES)
#: The number of files to read concurrently. Reading even a small file from object storage takes tens of milliseconds.
_READERS = 16
_ON_A_HOST = re.compile(r"[^/\s:]+:.+")


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """The outcome of a pull.

    Attributes:
        files: the number of files copied.
        size: the size of the copied files, in bytes.
        unchanged: the number of files that an earlier pull had already copied.
    """

    files: int
    size: int
    unchanged: int


def pull(source: str, directory: Path) -> Pulled:
    """Copy the results of a search, which may still be running. A repeated pull copies only files that have changed.

    An interrupted or failed pull leaves only complete files, and the next pull copies the rest.

    Args:
        source: the run directory: ``user@host:path`` (which needs rsync and ssh), a URI of object storage, or a path.
        directory: the target, which may contain an earlier copy of the same search.

    Returns:
        The numbers of copied and unchanged files, and the size of the copied files.

    Raises:
        RunDirectoryError: `source` is not a run directory, or `directory` cannot be written to, or is neither empty nor
            a copy of the same search.
        SpecError: `source` or `directory` cannot be a folder.
        StorageError: the source cannot be reached or read.
    """
    if _ON_A_HOST.fullmatch(source) and "://" not in source and not _exists(source):
        # With `-s`, the remote shell does not expand `~`, but rsync resolves relative paths against the home directory.
        return _from_host(source.rstrip("/").replace(":~/", ":", 1), directory)
    folder = open_folder(source)
    read_spec(folder)
    open_folder(directory)  # raises an error if the path cannot be a folder
    _check(LocalFolder(directory), folder, source)
    return _from_folder(folder, directory)


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # the name is too long
        return False


def _check(copy: LocalFolder, original: Folder, source: str) -> None:
    """Check that a directory is empty or a copy of the same search.

    Raises:
        RunDirectoryError: the directory is neither, or cannot be written to.
    """
    if copy.path.exists() and not copy.path.is_dir():
        raise RunDirectoryError(f"{str(copy)!r} is not a directory; give another directory")
    check_writable(copy)
    if not copy.path.exists() or not any(copy.path.iterdir()):
        return
    if _identity(copy) != _identity(original):
        raise RunDirectoryError(f"{str(copy)!r} is neither empty nor a copy of {source!r}; give another directory")


def _identity(folder: Folder) -> object:
    """Return the identity of the run in a directory.

    Directories of earlier versions have no ``run.json``. For them, return the content of ``search.yaml``.
    """
    return read_run(folder) or folder.read(SPEC_FILE)


def _from_folder(folder: Folder, directory: Path) -> Pulled:
    with ThreadPoolExecutor(_READERS) as readers:
        files = _results(folder, readers)
        changed = [file for file in files if not _is_copied(file, directory)]
        # After an error or an interrupt, `map` cancels the copies that have not started.
        sizes = [size for size in readers.map(partial(_copy, folder, directory), changed) if size is not None]
    return Pulled(files=len(sizes), size=sum(sizes), unchanged=len(files) - len(changed))


def _is_copied(file: File, directory: Path) -> bool:
    path = directory / file.name
    return path.exists() and (path.stat().st_size, path.stat().st_mtime_ns) == (file.size, file.modified)


def _copy(folder: Folder, directory: Path, file: File) -> int | None:
    """Copy a file and return its size; return None if the file was removed after the listing."""
    data = folder.read(file.name)
    if data is None:
        return None
    LocalFolder(directory).write(file.name, data)
    if len(data) == file.size:  # otherwise the file was replaced after the listing, and the next pull copies it again
        os.utime(directory / file.name, ns=(file.modified, file.modified))
    return len(data)


def _results(folder: Folder, readers: Executor) -> list[File]:
    """List the files to copy.

    Folders of equal depth are listed concurrently, because `tensorboard` contains a folder for each trajectory.
    """
    files: list[File] = []
    depth = [""]
    while depth:
        inside = []
        for prefix, (its_files, names) in zip(depth, readers.map(partial(_listing, folder), depth), strict=True):
            files += [replace(file, name=prefix + file.name) for file in its_files]
            inside += [f"{prefix}{name}/" for name in names if name not in _LEFT_BEHIND]
        depth = inside
    return files


def _listing(folder: Folder, prefix: str) -> tuple[list[File], list[str]]:
    inside = folder / prefix.rstrip("/") if prefix else folder
    return inside.files(), inside.folders()


def _from_host(source: str, directory: Path) -> Pulled:
    with tempfile.TemporaryDirectory() as scratch:
        # Fetch two small files first, to check that the directory is a copy of this search.
        _rsync(f"{source}/", scratch, source, f"--include=/{SPEC_FILE}", f"--include=/{RUN_FILE}", "--exclude=*")
        original = LocalFolder(Path(scratch))
        if original.read(SPEC_FILE) is None:
            raise RunDirectoryError(f"{source!r} is not a run directory: it has no {SPEC_FILE}")
        _check(LocalFolder(directory), original, source)
    directory.mkdir(parents=True, exist_ok=True)
    left_behind = [f"--exclude={name}/" for name in _LEFT_BEHIND] + ["--exclude=.*.partial"]
    output = _rsync(f"{source}/", str(directory), source, *left_behind, "--out-format=%i %l")
    sizes = [int(line.split()[1]) for line in output.splitlines() if line.startswith(">f")]
    total = len(LocalFolder(directory).files(recursive=True))
    return Pulled(files=len(sizes), size=sum(sizes), unchanged=total - len(sizes))


def _rsync(place: str, target: str, source: str, *options: str) -> str:
    command = ["rsync", "-a", "-s", *options, "--", place, target]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C"})  # noqa: S603
    except FileNotFoundError:
        raise StorageError(f"{source!r} cannot be read: this needs rsync, which is not installed here") from None
    # Exit code 24 means that a file vanished during the copy, for example because the running search replaced it.
    if done.returncode not in (0, 24):
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        raise StorageError(f"{source!r} cannot be read: {lines[0]}")
    return done.stdout
