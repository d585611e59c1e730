"""Folders on a local disk or in object storage, whose files are written whole or not at all."""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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
        SpecError: the location is none.
    """
    if isinstance(location, Folder):
        return location
    text = os.fspath(location)
    if "://" not in text:
        from ticket_search.storage.local import LocalFolder

        return LocalFolder(Path(text))
    from ticket_search.storage.remote import RemoteFolder

    return RemoteFolder(text)


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
