"""Folders on a disk."""

import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from ticket_search.errors import StorageError
from ticket_search.storage.folder import Content, File, Folder, parts_of, reason_of

#: A file being written is named ``.<name>.<random>.partial``; pyarrow and pandas skip names that start with a dot.
_PARTIAL = ".partial"


class LocalFolder(Folder):
    """A folder on a disk that this machine has mounted.

    Args:
        path: the path of the folder; a relative path is resolved at once against the current working directory.
    """

    grows = True

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    def __truediv__(self, name: str) -> "LocalFolder":
        return LocalFolder(self.path / name)

    def __str__(self) -> str:
        return str(self.path)

    def place(self, name: str) -> str:
        return str(self.path / name)

    def read(self, name: str) -> bytes | None:
        try:
            with (
                _named("read", self.path / name, may_be_absent=True),
                open(self.path / name, "rb", opener=_open_at_once) as file,
            ):
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise OSError(errno.EINVAL, "it is not a regular file")
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, data: Content) -> None:
        path = self.path / name
        with _named("write", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_name(f".{path.name}.{uuid4().hex}{_PARTIAL}")
            try:
                with aside.open("xb") as file:
                    file.writelines(parts_of(data))
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(aside, path)  # noqa: PTH105  (tests patch `os.replace` to fail here)
            except BaseException:
                aside.unlink(missing_ok=True)
                raise
            _sync_folder(path.parent)

    def append(self, name: str, data: bytes, *, durable: bool = False) -> None:
        path = self.path / name
        with _named("write", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            is_new = not path.exists()
            with path.open("ab", buffering=0) as file:
                before, rest = file.seek(0, os.SEEK_END), memoryview(data)
                try:
                    while rest:
                        rest = rest[file.write(rest) :]
                except OSError:
                    # Part of the data may have been written before the disk filled up. If it cannot be removed, readers
                    # drop the incomplete line.
                    with suppress(OSError):
                        os.ftruncate(file.fileno(), before)
                    raise
                if durable:
                    os.fsync(file.fileno())
            if durable and is_new:
                _sync_folder(path.parent)

    def drop_half_line(self, name: str) -> None:
        """Truncate a file after its last newline, because a killed writer may have left an incomplete line."""
        path = self.path / name
        with _named("write", path), path.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            if size == 0:
                return
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)

    def remove(self, name: str) -> None:
        with _named("remove", self.path / name):
            (self.path / name).unlink(missing_ok=True)

    def files(self, *, recursive: bool = False) -> list[File]:
        with _named("list", self.path):
            return sorted(self._files(self.path, "", recursive), key=lambda file: file.name)

    def folders(self) -> list[str]:
        with _named("list", self.path):
            entries = os.scandir(self.path) if self.path.is_dir() else ()
            return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))

    def parquet(self) -> dict[str, Any]:
        from pyarrow.fs import LocalFileSystem

        return {"path": str(self.path), "filesystem": LocalFileSystem()}

    def sweep(self, name: str = "", *, older_than_seconds: float = 0.0) -> None:
        path = self.path / name if name else self.path / "*"
        before = time.time() - older_than_seconds
        with _named("sweep", self.path):
            for leftover in path.parent.glob(f".{path.name}.*{_PARTIAL}"):
                with suppress(FileNotFoundError):
                    if leftover.stat().st_mtime <= before:
                        leftover.unlink()

    def _files(self, folder: Path, prefix: str, recursive: bool) -> Iterator[File]:
        try:
            entries = list(os.scandir(folder))
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                if entry.is_dir():
                    if recursive and not entry.is_symlink():
                        yield from self._files(folder / entry.name, f"{prefix}{entry.name}/", True)
                else:
                    status = entry.stat()
                    yield File(name=prefix + entry.name, size=status.st_size, modified=status.st_mtime_ns)
            except OSError:  # the file was removed after it was listed, or is a broken link
                continue


@contextmanager
def _named(verb: str, path: Path, *, may_be_absent: bool = False) -> Iterator[None]:
    """Turn an `OSError` into a `StorageError`. If `may_be_absent`, leave the error for a missing file as it is."""
    try:
        yield
    except OSError as error:
        if may_be_absent and isinstance(error, FileNotFoundError | NotADirectoryError):
            raise
        raise StorageError(f"cannot {verb} {str(path)!r}: {reason_of(error)}") from error


def _open_at_once(path: str, flags: int) -> int:
    """Open a file, without waiting for a writer if it is a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename or a new file in it survives a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF):  # some network file systems do not support syncing a folder
            raise
    finally:
        os.close(handle)
