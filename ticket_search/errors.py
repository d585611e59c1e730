"""The errors that users see. Each is one message that quotes the value and says what would be right."""

import reprlib
from collections.abc import Iterator
from contextlib import contextmanager


class TicketSearchError(Exception):
    """Base of every error that this package raises on purpose."""

    exit_code = 1


class SpecError(TicketSearchError):
    """A search, or a field of one, that cannot be run as written."""

    exit_code = 2


class DataError(SpecError):
    """A data set that is missing, unreadable or does not fit its description."""


class RunDirectoryError(SpecError):
    """A run directory that holds another search, holds none, or is in use."""


class StorageError(TicketSearchError):
    """A disk or a server refuses, is full or cannot be reached. Finished work is kept; the search can be resumed."""


class Fault(TicketSearchError):
    """A bug in this package or in a library below it. The command line shows its traceback with ``--debug``."""


class Diverged(TicketSearchError):
    """A training whose loss stopped being a finite number.

    Attributes:
        level: the level that diverged.
        iteration: the evaluation that showed it.
    """

    def __init__(self, level: int, iteration: int) -> None:
        super().__init__(f"the loss of level {level} was not finite at iteration {iteration}")
        self.level = level
        self.iteration = iteration

    def __reduce__(self) -> tuple[type["Diverged"], tuple[int, int]]:
        return type(self), (self.level, self.iteration)


def quoted(value: object) -> str:
    """A value as a message quotes it: its repr, cut in the middle to about 60 characters."""
    return shortened(_QUOTE.repr(value).replace("\n", " "))


def shortened(text: str, limit: int = 66) -> str:
    """Text with ``...`` in its middle where it is longer than the limit."""
    return text if len(text) <= limit else f"{text[: limit // 2 - 2]}...{text[-(limit // 2 - 2) :]}"


class _Quote(reprlib.Repr):
    """Bounded in depth too: aliases let 200 bytes of YAML stand for a value whose repr has gigabytes."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxstring = self.maxlong = self.maxother = 60

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write out integers of more than 4,300 digits (CVE-2020-10735).
        return super().repr_int(x, level) if x.bit_length() < 10_000 else "an integer of thousands of digits"


_QUOTE = _Quote()


class UserExit(TicketSearchError):
    """Code of the user's called ``sys.exit``, which would otherwise end the process and look like an interrupt."""


@contextmanager
def user_exit_as_error() -> Iterator[None]:
    """Turn a ``sys.exit`` of the user's network, data or metric into an error of the trajectory that called it.

    Raises:
        UserExit: instead of SystemExit.
    """
    try:
        yield
    except SystemExit as error:
        # Ray's handler of SIGTERM raises it too, with this attribute: the node is drained, and the worker must end.
        if hasattr(error, "ray_terminate_msg"):
            raise
        raise UserExit(f"sys.exit({error.code!r}) was called where a network, data or a metric is computed") from error
