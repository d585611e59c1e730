"""Output streams that may fail without stopping a search, whose results go to the run directory."""

import os
import sys
from contextlib import suppress
from typing import Any, TextIO


def outlive_audience() -> None:
    """Let this process continue if stdout or stderr fails.

    Examples are a terminal that was closed, a pipe to ``head -1``, and a log file on a full disk.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # the shell closed it: `>&-`
            stream = open(os.devnull, "w")  # noqa: SIM115, PTH123 (stays open until the process ends)
        if not isinstance(stream, _Dispensable):
            setattr(sys, name, _Dispensable(stream))


class _Dispensable:
    """A text stream that discards all output after its file has failed once."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError:
            self._drop()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._drop()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _drop(self) -> None:
        # Redirect the file descriptor too: unwritten text stays in the stream's buffer, and otherwise Python's flush at
        # exit would fail again and set the exit code to 120.
        with suppress(OSError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
