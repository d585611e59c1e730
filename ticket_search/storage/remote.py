"""Folders in object storage."""

import os
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

from ticket_search.errors import SpecError, StorageError
from ticket_search.storage.folder import Content, File, Folder, parts_of, reason_of

#: How long failed requests to object storage are retried, in seconds: long enough for a server to restart.
PATIENCE_SECONDS = 60.0
#: The options that an S3 location may have after its ``?``.
_S3_OPTIONS = ("endpoint_override", "region", "scheme")

T = TypeVar("T")


class RemoteFolder(Folder):
    """A folder in object storage. A file is written by one PUT or, above 5 MB, one multipart upload; both are atomic.

    Args:
        uri: the location, e.g. ``s3://bucket/path?region=eu-west-1``.
    """

    grows = False

    def __init__(self, uri: str) -> None:
        base, _, options = uri.partition("?")
        scheme, _, path = base.partition("://")
        if "#" in base:
            raise SpecError(f"{base!r} contains a '#', which is not allowed in a URI's path; give another name")
        base = f"{scheme.lower()}://{re.sub('/+', '/', path)}"
        self._base = base.rstrip("/")
        endpoint = os.environ.get("AWS_ENDPOINT_URL")
        if base.startswith("s3://") and endpoint and "endpoint_override=" not in options:
            # The endpoint becomes part of the location, because AWS_ENDPOINT_URL may not be set on other machines.
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

    def write(self, name: str, data: Content) -> None:
        def attempt() -> None:
            with self._filesystem.open_output_stream(f"{self._path}/{name}", compression=None) as file:
                for part in parts_of(data):
                    file.write(part)

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
        """Make a request, and retry it for up to `PATIENCE_SECONDS` while the server is busy or cannot be reached."""
        deadline = time.monotonic() + (0.0 if _impatient.get() else PATIENCE_SECONDS)
        pause = 0.2
        while True:
            try:
                return attempt()
            except OSError as error:
                if time.monotonic() + pause >= deadline or not _may_pass(error):
                    place = self.place(name) if name else self._base
                    raise StorageError(f"cannot {verb} {place!r}: {reason_of(error)}") from error
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, 5.0)


_impatient: ContextVar[bool] = ContextVar("impatient", default=False)


@contextmanager
def impatient() -> Iterator[None]:
    """Disable retries of this thread's requests to object storage until the block ends."""
    token = _impatient.set(True)
    try:
        yield
    finally:
        _impatient.reset(token)


def _connect(base: str, options: str) -> tuple[Any, str]:
    """Return the pyarrow file system of a location, and the location's path within it."""
    location = urlsplit(base)
    if location.username or location.password or "@" in location.netloc:
        raise SpecError(
            f"'{location.scheme}://...@{location.netloc.rpartition('@')[2]}{location.path}' contains credentials, "
            "which would be written into the results; set them in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if not location.netloc:
        raise SpecError(f"{base!r} names no bucket; give {location.scheme}://bucket/path")
    try:
        filesystem, bucket = _client(location.scheme, location.netloc, options)
    except (OSError, ValueError) as error:  # pyarrow's own errors are subclasses of these
        raise SpecError(f"{base!r} cannot be opened: {reason_of(error)}; give a path, or s3://bucket/path") from None
    return filesystem, bucket + location.path


@lru_cache(maxsize=64)
def _client(scheme: str, bucket: str, options: str) -> tuple[Any, str]:
    """Return the pyarrow file system (the client) of a bucket, and the bucket's path within it.

    All folders of a bucket share a client. A level store has 256 shards, and if no region is given, creating a client
    takes a request to find the region.
    """
    from pyarrow.fs import FileSystem

    if scheme == "s3":
        return _s3(bucket, options), bucket
    filesystem, path = FileSystem.from_uri(f"{scheme}://{bucket}" + (f"?{options}" if options else ""))
    return filesystem, path.rstrip("/")


def _s3(bucket: str, options: str) -> Any:
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem, resolve_s3_region

    given = dict(parse_qsl(options, keep_blank_values=True))
    if unknown := sorted(given.keys() - set(_S3_OPTIONS)):
        raise ValueError(f"unknown option {unknown[0]!r}; known: {', '.join(_S3_OPTIONS)}")
    endpoint = given.get("endpoint_override")
    if endpoint and "://" not in endpoint and "scheme" not in given:
        raise ValueError(
            f"endpoint_override {endpoint!r} has no protocol; give http://{endpoint} or https://{endpoint}"
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
        # Write a file of up to 5 MB with a single PUT.
        allow_delayed_open=True,
        # Try only twice, because `_patiently` retries for longer and can be interrupted with Ctrl-C.
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=2),
    )


def _may_pass(error: OSError) -> bool:
    """Return whether a retry may succeed; it cannot if the bucket does not exist or a permission is missing."""
    return not re.search(
        "NO_SUCH_BUCKET|ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE|Forbidden|HTTP status 40[013]", str(error)
    )
