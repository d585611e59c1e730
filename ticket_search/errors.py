"""The errors a user may see. Each is one message that quotes the value and says what would be right."""


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
