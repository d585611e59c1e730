"""Append-only files of lines, each of which is written completely or not at all."""

from ticket_search.errors import StorageError
from ticket_search.storage.folder import Folder
from ticket_search.storage.local import LocalFolder

#: The number of lines in a part. Parts are short, because each append to object storage rewrites the last part.
_LINES_A_PART = 200


class LineFile:
    """UTF-8 lines in ``<name>.jsonl`` and, if files cannot be appended to, in ``<name>.00001.jsonl`` and so on.

    Files copied from a disk to object storage, or back, can still be read and appended to. Only one process at a time
    may append.

    Args:
        folder: the folder of the files.
        name: the name of the file, without ``.jsonl``.
    """

    def __init__(self, folder: Folder, name: str) -> None:
        self._folder = folder
        self._name = name
        # The number of the last part; None if it must be determined before the next append.
        self._last: int | None = None
        # The lines of the last part; used only in storage that cannot append to files.
        self._lines: list[str] = []

    def append(self, text: str, *, durable: bool = True) -> None:
        """Add one line.

        Args:
            text: the line, without its newline.
            durable: whether to return only once the line would survive a power failure.

        Raises:
            ValueError: `text` contains a newline.
            StorageError: the line could not be written; earlier lines are untouched.
        """
        if "\n" in text:
            raise ValueError(f"{text!r} is more than one line")
        if self._last is None:
            self._find_end()
        if self._folder.grows:
            try:
                self._folder.append(self._part(), text.encode() + b"\n", durable=durable)
            except StorageError:
                self._last = None  # the next append will drop any incomplete line left by this one
                raise
            return
        if len(self._lines) >= _LINES_A_PART:
            self._last = (self._last or 0) + 1
            self._lines = []
        self._folder.write(self._part(), "".join(f"{line}\n" for line in [*self._lines, text]).encode())
        self._lines.append(text)

    def read(self) -> list[str]:
        """Return the complete lines, without their newlines; an empty list if there is no file."""
        lines: list[str] = []
        number = 0
        while (data := self._folder.read(_part(self._name, number))) is not None:
            lines += complete_lines(data)
            number += 1
        return lines

    def _find_end(self) -> None:
        """Find the last part, and drop an incomplete line that a killed writer may have left at its end."""
        number, data = 0, None
        while (part := self._folder.read(_part(self._name, number))) is not None:
            number, data = number + 1, part
        self._last = max(0, number - 1)
        self._lines = complete_lines(data or b"")
        if data and isinstance(self._folder, LocalFolder):
            self._folder.drop_half_line(self._part())

    def _part(self) -> str:
        return _part(self._name, self._last or 0)


def complete_lines(data: bytes) -> list[str]:
    """Return the complete lines of `data`, without their newlines."""
    return data[: data.rfind(b"\n") + 1].decode(errors="replace").split("\n")[:-1]


def _part(name: str, number: int) -> str:
    return f"{name}.{number:05}.jsonl" if number else f"{name}.jsonl"
