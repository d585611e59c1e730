"""Folders on a local disk or in object storage, whose files are written whole or not at all."""

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
    """A file of a folder.

    Attributes:
        name: relative to the folder, with ``/`` between its parts.
        size: in bytes.
        modified: by the clock of the disk or the server, in nanoseconds since 1970.
    """

    name: str
    size: int
    modified: int


#: The content of a file, or its parts in order: an entry of gigabytes need not be joined in memory to be written.
Content = bytes | Sequence[bytes | memoryview]


class Folder(ABC):
    """A folder whose files are replaced whole. It need not exist: it appears with its first file.

    Names are relative to the folder and may have parts, ``a/b``. Every method raises `StorageError`, one message that
    names the file, where the disk or the server refuses, is full, or cannot be reached.
    """

    #: Whether files can grow. Where they cannot, `append` is not there.
    grows: bool

    @abstractmethod
    def __truediv__(self, name: str) -> "Folder":
        """The folder `name` in this one."""

    @abstractmethod
    def __str__(self) -> str:
        """The location, absolute; `open_folder` opens it again, on any machine that reaches it."""

    @abstractmethod
    def place(self, name: str) -> str:
        """Where a file is, for people."""

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """The content of a file; None if there is none."""

    @abstractmethod
    def write(self, name: str, data: Content) -> None:
        """Put `data` at `name`: a reader sees the old content or the new, never a part, also after a power cut."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    @abstractmethod
    def files(self, *, recursive: bool = False) -> list[File]:
        """The files in it, by name, those half written left out; where `recursive`, those in its folders too."""

    @abstractmethod
    def folders(self) -> list[str]:
        """The names of the folders directly in it, but hidden ones."""

    @abstractmethod
    def parquet(self) -> dict[str, Any]:
        """The keyword arguments with which pandas and pyarrow read this folder: ``path`` and ``filesystem``."""

    def append(self, name: str, data: bytes, *, durable: bool = False) -> None:
        """Add to the end of a file that has one writer; where `durable`, return when it would survive a power cut."""
        raise NotImplementedError

    def sweep(self, name: str = "", *, older_than_seconds: float = 0.0) -> None:  # noqa: B027  (nothing to sweep remotely)
        """Remove what writers killed within `write` left of a file; with no name, of any file directly in the folder.

        For the only one who may be writing there, or of files so old that nobody can be.
        """

    def remove_all(self) -> None:
        """Remove every file in it and in its folders, but hidden ones."""
        for file in self.files(recursive=True):
            self.remove(file.name)


Location = str | os.PathLike[str] | Folder


def open_folder(location: Location) -> Folder:
    """The folder at a local path, or at a URI that pyarrow knows: ``s3://bucket/path``, ``gs://bucket/path``.

    An S3-compatible server is named in the location (``s3://bucket/path?endpoint_override=http://host:9000``) or by
    the environment (``AWS_ENDPOINT_URL``); credentials come from the environment.

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


#: In bytes, the longest name on every file system in common use.
_NAME_MAX = 255


def _check_path(text: str) -> None:
    """Refuse a path that can never be a folder; errors that may pass are raised when the folder is used."""
    reason = ""
    try:
        Path(text).stat()
    except ValueError as error:  # a NUL in it
        reason = reason_of(error)
    except OSError as error:
        # Below a folder that does not exist yet, `stat` finds no name too long.
        too_long = any(len(os.fsencode(part)) > _NAME_MAX for part in Path(text).parts)
        if too_long or error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            reason = os.strerror(errno.ENAMETOOLONG) if too_long else reason_of(error)
    if reason:
        shown = text if len(text) <= 100 else f"{text[:60]}...{text[-20:]}"
        raise SpecError(f"{shown!r} cannot be a folder: {reason}; give another path")


def parts_of(data: Content) -> Sequence[bytes | memoryview]:
    """The parts of a file's content; bytes are one part."""
    return (data,) if isinstance(data, bytes) else data


def is_remote(location: str) -> bool:
    """Whether a location is a URI rather than a local path."""
    return "://" in location


def reason_of(error: BaseException) -> str:
    """The system's words, on one line, without the path that the message names already."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())
