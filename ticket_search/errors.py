"""The errors that users see. Each message quotes the offending value and says what would be valid."""

import reprlib
from collections.abc import Iterator
from contextlib import contextmanager


class TicketSearchError(Exception):
    """Base class of all errors that this package raises deliberately."""

    exit_code = 1


class SpecError(TicketSearchError):
    """An invalid search, option or argument."""

    exit_code = 2


class DataError(SpecError):
    """A data set that is missing or unreadable, or that does not match its description."""


class RunDirectoryError(SpecError):
    """A run directory that contains a different search or no search, is damaged, or is in use."""


class StorageError(TicketSearchError):
    """A disk or storage server that refuses access, is full, or cannot be reached.

    Finished work is kept, and the search can be resumed.
    """


class Fault(TicketSearchError):
    """A bug in this package or in a library that it uses. With ``--debug``, the command line shows the traceback."""


class Diverged(TicketSearchError):
    """A training run whose loss became infinite or nan.

    Attributes:
        level: the level that diverged.
        iteration: the iteration of the evaluation at which the loss was not finite.
    """

    def __init__(self, level: int, iteration: int) -> None:
        super().__init__(f"the loss of level {level} was not finite at iteration {iteration}")
        self.level = level
        self.iteration = iteration

    def __reduce__(self) -> tuple[type["Diverged"], tuple[int, int]]:
        return type(self), (self.level, self.iteration)


def quoted(value: object) -> str:
    """Return the repr of a value for use in a message, shortened to about 60 characters."""
    return shortened(_QUOTE.repr(value).replace("\n", " "))


def shortened(text: str, limit: int = 66) -> str:
    """Return the text, with its middle replaced by ``...`` if it is longer than the limit."""
    return text if len(text) <= limit else f"{text[: limit // 2 - 2]}...{text[-(limit // 2 - 2) :]}"


class _Quote(reprlib.Repr):
    """A `reprlib.Repr` with limited depth, because 200 bytes of YAML with aliases can expand to a repr of gigabytes."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxstring = self.maxlong = self.maxother = 60

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to convert integers of more than 4,300 digits to text (CVE-2020-10735).
        return super().repr_int(x, level) if x.bit_length() < 10_000 else "an integer of thousands of digits"


_QUOTE = _Quote()


class UserExit(TicketSearchError):
    """User code that called ``sys.exit``, or that raised another exception not derived from `Exception`."""


@contextmanager
def user_exit_as_error() -> Iterator[None]:
    """Turn a ``sys.exit`` in the user's network, data or metric into an error that fails only the current trajectory.

    Raises:
        UserExit: the code raised SystemExit or another exception that does not derive from `Exception`.
            KeyboardInterrupt is passed on unchanged.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt):
        raise
    except SystemExit as error:
        # Ray's SIGTERM handler raises a SystemExit with this attribute when a node is drained. Pass it on, because the
        # worker must exit.
        if hasattr(error, "ray_terminate_msg"):
            raise
        raise UserExit(f"the code of a network, data set or metric called sys.exit({error.code!r})") from error
    except BaseException as error:  # such as asyncio.CancelledError
        name = type(error).__name__
        raise UserExit(f"{name} was raised by the code of a network, data set or metric") from error
