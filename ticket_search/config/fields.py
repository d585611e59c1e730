"""Fields that several parts of a specification have: numbers in their ranges, and lengths of training."""

import re
from typing import Annotated

from pydantic import Field

_EPOCHS = re.compile(r"([1-9]\d{0,8})ep")

Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]
PositiveInt = Annotated[int, Field(ge=1, le=2**31 - 1)]
NonNegativeInt = Annotated[int, Field(ge=0, le=2**53)]
#: A column of the tables holds it as int64.
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
#: A length of training: iterations, or epochs as ``"20ep"``.
Duration = int | str


def check_duration(value: Duration) -> Duration:
    """A duration that can be read, or a ValueError."""
    if isinstance(value, str) and not _EPOCHS.fullmatch(value):
        raise ValueError(f"{value!r} is not a length of training: give iterations (20000) or epochs ('20ep')")
    if isinstance(value, int) and value < 0:
        raise ValueError(f"{value} is not a length of training: give 0 or more iterations")
    return value


def check_positive(value: Duration) -> Duration:
    """As `check_duration`, and of one iteration or epoch at least."""
    if isinstance(value, int) and value < 1:
        raise ValueError(f"{value} is not a length of training: give at least one iteration (20000) or epoch ('1ep')")
    return check_duration(value)


def resolve_duration(value: Duration, iterations_per_epoch: int) -> int:
    """Iterations in a duration such as ``20000`` or ``"20ep"``."""
    if isinstance(value, int):
        return value
    return int(value.removesuffix("ep")) * iterations_per_epoch
