"""Field types that several parts of a specification share: bounded numbers, and training durations."""

import re
from typing import Annotated

from pydantic import BeforeValidator, Field

from ticket_search.errors import quoted

#: The maximum length of a training run, a hundred times that of the longest run in the literature. A larger number is
#: probably a typo, and the learning curves of such a run would need terabytes.
MOST_ITERATIONS = 10**9
_EPOCHS = re.compile(r"([1-9]\d{0,8})ep")

Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]
PositiveInt = Annotated[int, Field(ge=1, le=2**31 - 1)]
NonNegativeInt = Annotated[int, Field(ge=0, le=2**53)]
#: A seed, bounded because the tables store seeds as int64.
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]


def _duration(value: object, least: int = 0) -> object:
    if isinstance(value, str) and _EPOCHS.fullmatch(value):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) <= MOST_ITERATIONS:
        raise ValueError(f"{value} is not a training duration: write {int(value)}, not {value}")
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{quoted(value)} is not a training duration: give iterations (20000) or epochs ('20ep')")
    if not least <= value <= MOST_ITERATIONS:
        raise ValueError(
            f"{quoted(value)} is not a training duration: give {least} to {MOST_ITERATIONS} iterations, "
            "or epochs ('20ep')"
        )
    return value


def _positive_duration(value: object) -> object:
    return _duration(value, least=1)


#: A training duration: a number of iterations, or of epochs as ``"20ep"``.
Duration = Annotated[int | str, BeforeValidator(_duration)]
#: A training duration of at least one iteration or epoch.
PositiveDuration = Annotated[int | str, BeforeValidator(_positive_duration)]


def resolve_duration(value: Duration, iterations_per_epoch: int) -> int:
    """Return the number of iterations in a duration such as ``20000`` or ``"20ep"``.

    Raises:
        ValueError: the number exceeds `MOST_ITERATIONS`.
    """
    iterations = value if isinstance(value, int) else int(value.removesuffix("ep")) * iterations_per_epoch
    if iterations > MOST_ITERATIONS:
        raise ValueError(f"{value!r} is {iterations} iterations, more than {MOST_ITERATIONS}; give fewer epochs")
    return iterations
