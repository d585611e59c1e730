"""Folders on a local disk or in object storage, whose files are written completely or not at all."""

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ticket_search.errors import SpecError


@dataclass(frozen=True, kw_only=True)
class File:
    """A file in a folder.

    Attributes:
        name: the name relative to the folder, with ``/`` between its parts.
        size: the size in bytes.
        modified: the modification time by the clock of the disk or the server, in nanoseconds since 1970.
    """

    name: str
    size: int
    modified: int


#: The content of a file, as one `bytes` object or as a sequence of parts. An entry of the level store is written in
#: parts, because joining them would copy gigabytes.
Content = bytes | Sequence[bytes | memoryview]


class Folder(ABC):
    """A folder whose files are replaced atomically. It need not exist: writing a file creates it.

    Names are relative to the folder and may have several parts, such as ``a/b``. Every method raises a
    `StorageError` that names the file if the disk or the server refuses the request, is full, or cannot be reached.
    """

    #: Whether files can be appended to. If not, `append` is not implemented.
    grows: bool

    @abstractmethod
    def __truediv__(self, name: str) -> "Folder":
        """Return the subfolder `name`."""

    @abstractmethod
    def __str__(self) -> str:
        """Return the absolute location, which `open_folder` accepts on any machine that can access the folder."""

    @abstractmethod
    def place(self, name: str) -> str:
        """Return the location of a file, for messages."""

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """Return the content of a file; None if it does not exist."""

    @abstractmethod
    def write(self, name: str, data: Content) -> None:
        """Create or replace a file. Readers see the whole old or the whole new content, even after a power failure."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, if it exists."""

    @abstractmethod
    def files(self, *, recursive: bool = False) -> list[File]:
        """List the files in the folder, sorted by name. Partial files are left out.

        Args:
            recursive: whether to include the files in subfolders.
        """

    @abstractmethod
    def folders(self) -> list[str]:
        """Return the names of the direct subfolders, except hidden ones."""

    @abstractmethod
    def parquet(self) -> dict[str, Any]:
        """Return the keyword arguments that make pandas or pyarrow read this folder: ``path`` and ``filesystem``."""

    def append(self, name: str, data: bytes, *, durable: bool = False) -> None:
        """Append to a file that has a single writer.

        Args:
            name: the name of the file.
            data: the data to append.
            durable: whether to return only once the data would survive a power failure.
        """
        raise NotImplementedError

    def sweep(self, name: str = "", *, older_than_seconds: float = 0.0) -> None:  # noqa: B027  (nothing to sweep remotely)
        """Remove the partial files that killed writers left behind.

        Call this only as the single writer, or with an age at which no write can still be in progress.

        Args:
            name: the file whose partial files are removed; "" means all files directly in the folder.
            older_than_seconds: the minimum age of the partial files to remove.
        """

    def remove_all(self) -> None:
        """Remove every file in the folder and its subfolders, except hidden ones."""
        for file in self.files(recursive=True):
            self.remove(file.name)


Location = str | os.PathLike[str] | Folder


def open_folder(location: Location) -> Folder:
    """Open a local path, or a URI that pyarrow supports: ``s3://bucket/path``, ``gs://bucket/path``.

    The endpoint of an S3-compatible server comes from the location
    (``s3://bucket/path?endpoint_override=http://host:9000``) or from ``AWS_ENDPOINT_URL``; credentials come from the
    environment.

    Raises:
        SpecError: the location cannot be a folder.
    """
    if isinstance(location, Folder):
        return location
    text = os.fspath(location)
    if "://" not in text:
        from ticket_search.storage.local import LocalFolder

        _check_path(text)
        return LocalFolder(Path(text))
    from ticket_search.storage.remote import RemoteFolder

    return RemoteFolder(text)


#: The maximum length of a file name, in bytes, on all common file systems.
_NAME_MAX = 255


def _check_path(text: str) -> None:
    """Check that a path can be a folder. Errors that may be temporary are raised only when the folder is used.

    Raises:
        SpecError: the path can never be a folder.
    """
    reason = ""
    try:
        Path(text).stat()
    except ValueError:  # this error's own message differs between versions of Python
        reason = "it contains a NUL character"
    except OSError as error:
        # If a parent folder is missing, `stat` reports that, even if a name is too long.
        too_long = any(len(os.fsencode(part)) > _NAME_MAX for part in Path(text).parts)
        if too_long or error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            reason = os.strerror(errno.ENAMETOOLONG) if too_long else reason_of(error)
    if reason:
        shown = text if len(text) <= 100 else f"{text[:60]}...{text[-20:]}"
        raise SpecError(f"{shown!r} cannot be a folder: {reason}; give another path")


def parts_of(data: Content) -> Sequence[bytes | memoryview]:
    """Return the content of a file as parts; a `bytes` object is a single part."""
    return (data,) if isinstance(data, bytes) else data


def is_remote(location: str) -> bool:
    """Return whether a location is a URI rather than a local path."""
    return "://" in location


def reason_of(error: BaseException) -> str:
    """Return an error's text on one line, without the path, because the caller's message already quotes the path."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())
