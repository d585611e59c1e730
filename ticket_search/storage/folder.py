"""Folders on a local disk or in object storage, whose files are written whole or not at all."""

import errno
import os
import random
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit
from uuid import uuid4

from ticket_search.errors import SpecError, StorageError

#: A file being written is ``.<name>.<random>.partial``; pyarrow and pandas skip names that start with a dot.
_PARTIAL = ".partial"
#: A request to object storage that fails is made again for so many seconds, which bridges a restart of the server.
PATIENCE_SECONDS = 60.0
#: What may follow a ``?`` in an S3 location.
_S3_OPTIONS = ("endpoint_override", "region", "scheme")

T = TypeVar("T")


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
    def write(self, name: str, data: bytes) -> None:
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
        return LocalFolder(Path(text))
    return RemoteFolder(text)


def is_remote(location: str) -> bool:
    """Whether a location is a URI rather than a local path."""
    return "://" in location


class LocalFolder(Folder):
    """A folder on a disk that this machine has mounted.

    Args:
        path: of the folder; a relative one is taken from the working directory of now.
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
            with _named("read", self.path / name, may_be_absent=True):
                return (self.path / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, data: bytes) -> None:
        path = self.path / name
        with _named("write", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_name(f".{path.name}.{uuid4().hex}{_PARTIAL}")
            try:
                with aside.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(aside, path)  # noqa: PTH105  the name that tests replace to fail here
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
                    # A full disk may have taken the half of it.
                    with suppress(OSError):  # the reader drops a half line
                        os.ftruncate(file.fileno(), before)
                    raise
                if durable:
                    os.fsync(file.fileno())
            if durable and is_new:
                _sync_folder(path.parent)

    def drop_half_line(self, name: str) -> None:
        """Cut what a killed writer left after a file's last newline."""
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
                    found = entry.stat()
                    yield File(name=prefix + entry.name, size=found.st_size, modified=found.st_mtime_ns)
            except OSError:  # removed meanwhile, or a link that leads nowhere
                continue


class RemoteFolder(Folder):
    """A folder in object storage. A file is one PUT (above 5 MB one multipart upload), so it is there whole or not.

    Args:
        uri: e.g. ``s3://bucket/path?region=eu-west-1``.
    """

    grows = False

    def __init__(self, uri: str) -> None:
        base, _, options = uri.partition("?")
        scheme, _, path = base.partition("://")
        if "#" in base:
            raise SpecError(f"{base!r} holds a '#', which ends a URI; give another name")
        base = f"{scheme.lower()}://{re.sub('/+', '/', path)}"
        self._base = base.rstrip("/")
        endpoint = os.environ.get("AWS_ENDPOINT_URL")
        if base.startswith("s3://") and endpoint and "endpoint_override=" not in options:
            # Another process, on another machine perhaps, has another environment.
            options = f"{options}&endpoint_override={endpoint}".lstrip("&")
        self._options = options
        self._filesystem, self._path = _connect(self._base, options)

    def __truediv__(self, name: str) -> "RemoteFolder":
        return RemoteFolder(f"{self._base}/{name}" + (f"?{self._options}" if self._options else ""))

    def place(self, name: str) -> str:
        return f"{self._base}/{name}"

    def __str__(self) -> str:
        return self._base + (f"?{self._options}" if self._options else "")

    def read(self, name: str) -> bytes | None:
        def attempt() -> bytes | None:
            try:
                with self._filesystem.open_input_file(f"{self._path}/{name}") as file:
                    data: bytes = file.read()
                    return data
            except FileNotFoundError:
                return None

        return self._patiently("read", name, attempt)

    def write(self, name: str, data: bytes) -> None:
        def attempt() -> None:
            with self._filesystem.open_output_stream(f"{self._path}/{name}", compression=None) as file:
                file.write(data)

        self._patiently("write", name, attempt)

    def remove(self, name: str) -> None:
        def attempt() -> None:
            try:
                self._filesystem.delete_file(f"{self._path}/{name}")
            except FileNotFoundError:
                return

        self._patiently("remove", name, attempt)

    def files(self, *, recursive: bool = False) -> list[File]:
        from pyarrow.fs import FileType

        skip = len(self._path) + 1
        files = [
            File(name=info.path[skip:], size=info.size, modified=int(info.mtime_ns or 0))
            for info in self._list(recursive)
            if info.type == FileType.File
        ]
        return sorted(files, key=lambda file: file.name)

    def folders(self) -> list[str]:
        from pyarrow.fs import FileType

        names = (info.base_name for info in self._list(recursive=False) if info.type == FileType.Directory)
        return sorted(name for name in names if not name.startswith("."))

    def _list(self, recursive: bool) -> list[Any]:
        from pyarrow.fs import FileSelector

        selector = FileSelector(self._path, allow_not_found=True, recursive=recursive)
        return self._patiently("list", "", lambda: list(self._filesystem.get_file_info(selector)))

    def parquet(self) -> dict[str, Any]:
        return {"path": self._path, "filesystem": self._filesystem}

    def _patiently(self, verb: str, name: str, attempt: Callable[[], T]) -> T:
        """Make a request, again and again while the server cannot be reached or is busy."""
        deadline = time.monotonic() + (0.0 if _impatient.get() else PATIENCE_SECONDS)
        pause = 0.2
        while True:
            try:
                return attempt()
            except OSError as error:
                if time.monotonic() + pause >= deadline or not _may_pass(error):
                    place = self.place(name) if name else self._base
                    raise StorageError(f"cannot {verb} {place!r}: {_reason(error)}") from error
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, 5.0)


_impatient: ContextVar[bool] = ContextVar("impatient", default=False)


@contextmanager
def impatient() -> Iterator[None]:
    """Within the block, and in this thread, a request to object storage is made once."""
    token = _impatient.set(True)
    try:
        yield
    finally:
        _impatient.reset(token)


@lru_cache(maxsize=64)
def _connect(base: str, options: str) -> tuple[Any, str]:
    from pyarrow import ArrowException
    from pyarrow.fs import FileSystem

    location = urlsplit(base)
    if location.username or location.password or "@" in location.netloc:
        raise SpecError(
            f"'{location.scheme}://...@{location.netloc.rpartition('@')[2]}{location.path}' holds credentials, which "
            "would be written into the results; give them by the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
        )
    if not location.netloc:
        raise SpecError(f"{base!r} names no bucket; give {location.scheme}://bucket/path")
    try:
        if location.scheme == "s3":
            return _s3(location.netloc, options), location.netloc + location.path
        filesystem, path = FileSystem.from_uri(base + (f"?{options}" if options else ""))
    except (ArrowException, OSError, ValueError) as error:
        raise SpecError(f"{base!r} cannot be opened: {_reason(error)}; give a path, or s3://bucket/path") from None
    return filesystem, path


def _s3(bucket: str, options: str) -> Any:
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem, resolve_s3_region

    given = dict(parse_qsl(options, keep_blank_values=True))
    if unknown := sorted(given.keys() - set(_S3_OPTIONS)):
        raise ValueError(f"unknown option {unknown[0]!r}; known: {', '.join(_S3_OPTIONS)}")
    endpoint = given.get("endpoint_override")
    if endpoint and "://" not in endpoint and "scheme" not in given:
        raise ValueError(
            f"endpoint_override {endpoint!r} names no protocol; give http://{endpoint} or https://{endpoint}"
        )
    region = given.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not region and not endpoint:
        region = resolve_s3_region(bucket)
    return S3FileSystem(
        endpoint_override=endpoint,
        region=region or "us-east-1",
        scheme=given.get("scheme"),
        connect_timeout=5,
        request_timeout=30,
        # A file of up to 5 MB is one PUT.
        allow_delayed_open=True,
        # `_patiently` waits longer, and can be interrupted.
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=2),
    )


def _may_pass(error: OSError) -> bool:
    """Whether waiting may help: not with a bucket or a permission that is missing."""
    return not re.search(
        "NO_SUCH_BUCKET|ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE|Forbidden|HTTP status 40[013]", str(error)
    )


def _reason(error: BaseException) -> str:
    """The system's words, on one line, without the path that the message names already."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())


@contextmanager
def _named(verb: str, path: Path, *, may_be_absent: bool = False) -> Iterator[None]:
    """Turn an error of the system into one message; where a file may be absent, that stays a `FileNotFoundError`."""
    try:
        yield
    except OSError as error:
        if may_be_absent and isinstance(error, FileNotFoundError | NotADirectoryError):
            raise
        raise StorageError(f"cannot {verb} {str(path)!r}: {_reason(error)}") from error


def _sync_folder(folder: Path) -> None:
    """Make a rename or a new file in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF):  # some network file systems cannot
            raise
    finally:
        os.close(handle)
