"""Files that survive a kill: written whole or not at all, or appended to line by line."""

import os
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

#: A file being written is ``.<name>.<random>.partial``; pyarrow and pandas skip names that start with a dot.
_PARTIAL = ".partial"


def write_whole(path: Path, data: bytes) -> None:
    """Put `data` at `path`: a reader sees the old content or the new, never a part. Missing folders are made.

    Raises:
        OSError: it could not be written; the old content is untouched.
    """
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


def sweep(folder: Path) -> None:
    """Remove what writers killed within `write_whole` left in `folder`. Only for the folder's one writer."""
    for leftover in folder.glob(f".*{_PARTIAL}"):
        leftover.unlink(missing_ok=True)


def append_line(path: Path, text: str, *, durable: bool = True) -> None:
    """Append one line of UTF-8; a half line that a killed writer left at the end is dropped first.

    Args:
        path: has one writer at a time. Missing folders, and the file, are made.
        text: the line, without its newline.
        durable: return only when the line would survive a power cut.

    Raises:
        ValueError: `text` holds a newline.
    """
    if "\n" in text:
        raise ValueError(f"{text!r} is more than one line")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        _drop_half_line(file)
        file.write(text.encode() + b"\n")
        file.flush()
        if durable:
            os.fsync(file.fileno())


def _drop_half_line(file: BinaryIO) -> None:
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return
    file.seek(-1, os.SEEK_END)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def read_lines(path: Path) -> list[str]:
    """The complete lines of a file that `append_line` writes, without their newlines; none if there is no file."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    return data[: data.rfind(b"\n") + 1].decode().split("\n")[:-1]
