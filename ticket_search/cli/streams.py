"""Handles standard streams that are closed or fail: a failure may stop a command, but must not stop a search."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

_STDOUT = "<stdout>"


def prepare_streams() -> None:
    """Open the null device for closed streams (`>&-`), ignore errors on stderr, and mark errors on stdout.

    If a closed stream stayed closed, the next file that this process opens would get the stream's file descriptor, and
    whatever a library prints would go into that file.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, "r" if name == "stdin" else "w"))
    sys.stdout = cast(TextIO, _Named(sys.stdout))
    sys.stderr = cast(TextIO, _Dispensable(sys.stderr))


def is_of_stdout(error: OSError) -> bool:
    """Return whether an error was raised by writing to stdout; `prepare_streams` must already have been called."""
    return str(error.filename) == _STDOUT


def outlive_audience() -> None:
    """Let this process continue when it can no longer write to stdout or stderr.

    This happens if, for example, the terminal is closed, ``head -1`` closes the pipe, or a log file's disk is full.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, _Dispensable):
            setattr(sys, name, _Dispensable(stream))


class _Named:
    """A text stream whose errors name stdout as their file, so that `is_of_stdout` recognizes them."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with _named(self._stream):
            return self._stream.write(text)

    def flush(self) -> None:
        with _named(self._stream):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _named(stream: TextIO) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        _discard(stream)
        error.filename = _STDOUT
        raise


def _discard(stream: TextIO) -> None:
    """Send a stream's unwritten text and all later output to the null device.

    Otherwise, Python would try to write the text again at exit, fail again, and set the exit code to 120.
    """
    with suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


class _Dispensable:
    """A text stream that discards all output once writing to its file has failed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError:
            _discard(self._stream)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            _discard(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
