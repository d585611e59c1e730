"""The errors a user may see. Each is one message that quotes the value and says what would be right."""

from collections.abc import Iterator
from contextlib import contextmanager


class TicketSearchError(Exception):
    """Base of every error this package raises on purpose."""

    exit_code = 1


class SpecError(TicketSearchError):
    """A search, or a field of one, that cannot be run as written."""

    exit_code = 2


class DataError(SpecError):
    """A dataset that is absent, unreadable or does not fit its description."""


class RunDirectoryError(SpecError):
    """A run directory that holds another search, none, or one that is being run."""


class StorageError(TicketSearchError):
    """A disk or a server that refuses, is full, or cannot be reached. What was finished is kept; it can be gone on."""


class Diverged(TicketSearchError):
    """A training whose loss stopped being a finite number.

    Attributes:
        level: the level that diverged.
        iteration: the evaluation at which it was noticed.
    """

    def __init__(self, level: int, iteration: int) -> None:
        super().__init__(f"the loss of level {level} was not finite at iteration {iteration}")
        self.level = level
        self.iteration = iteration

    def __reduce__(self) -> tuple[type["Diverged"], tuple[int, int]]:
        return type(self), (self.level, self.iteration)


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
