"""Output that a search does not depend on: its record is the run directory."""

import os
import sys
from contextlib import suppress
from typing import Any, TextIO


def outlive_audience() -> None:
    """Let this process continue when stdout or stderr fails: a closed terminal, `| head -1`, a full disk for a log."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # it was closed before the start: `>&-`
            stream = open(os.devnull, "w")  # noqa: SIM115, PTH123 (it stays open as long as the process)
        if not isinstance(stream, _Dispensable):
            setattr(sys, name, _Dispensable(stream))


class _Dispensable:
    """A text stream that drops output once its file fails."""

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
        # Below the stream, because what failed to be written stays in its buffer, and Python's own flush at the end
        # would fail again, with exit code 120.
        with suppress(OSError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
