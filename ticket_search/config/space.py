"""Domains of the fields that a search varies: lists of values, or ranges of numbers."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from ticket_search.config.base import Spec, unknown, validate
from ticket_search.config.older import OLDER_SECTIONS
from ticket_search.config.pruning import PruningSpec
from ticket_search.config.trajectory import DatasetSpec, ModelSpec, TrainingSpec
from ticket_search.errors import SpecError, quoted

SECTIONS: dict[str, type[Spec]] = {
    "dataset": DatasetSpec,
    "model": ModelSpec,
    "training": TrainingSpec,
    "pruning": PruningSpec,
}


#: Integers are bounded so that they can be converted to float; an integer of 400 digits cannot be.
Number = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | float


class Range(Spec):
    """The numbers between two bounds, inclusive.

    Attributes:
        low: the lower bound.
        high: the upper bound.
        log: whether values are drawn uniformly on a logarithmic scale.
        step: if not None, only ``low, low + step, ...`` are drawn.
    """

    low: Number
    high: Number
    log: bool = False
    step: Number | None = None

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        if self.low >= self.high:
            raise ValueError(f"low {self.low} must be less than high {self.high}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError(
                f"a log range needs a low above 0 and no step, but low is {self.low} and step is {self.step}"
            )
        if self.step is not None and self.step < _LEAST_STEP:
            raise ValueError(f"step {self.step} must be at least {_LEAST_STEP}")
        # Count in floats, because between -1e308 and 1e308 the count is infinity, which cannot be converted to int.
        if self.step is not None and (values := (self.high - self.low) / self.step + 1) > MOST_STEPS:
            raise ValueError(f"step {self.step} makes {values:.0f} values, but at most {MOST_STEPS} are allowed")
        return self

    @property
    def count(self) -> int:
        """The number of values of a range with a step. A range of integers without a step has step 1."""
        # The 1e-9 compensates for rounding: in floating point, (0.5 - 0.1) / 0.1 is 3.9999999999999996.
        return int((self.high - self.low) / (self.step or 1) + 1e-9) + 1

    def value(self, i: int) -> int | float:
        """Return the value with index i, from 0 to `count` - 1."""
        value = self.low + i * (self.step or 1)
        # Round, because in floating point 0.1 + 2 * 0.1 is 0.30000000000000004.
        return value if self.is_integer else round(float(value), 12)

    @property
    def is_integer(self) -> bool:
        """Whether all values are integers, which is the case if the bounds and the step (if any) are integers."""
        return all(isinstance(v, int) for v in (self.low, self.high, 1 if self.step is None else self.step))


MOST_STEPS = 1_000_000
_LEAST_STEP = 1e-9
#: The maximum number of values in a list. The time to find duplicates grows with the square of this number; for 10,000
#: values, it is about a second.
_MOST_VALUES = 10_000
#: The possible values of a field: those in a list, or the numbers in a range.
Domain = tuple[Any, ...] | Range


def dotted(name: str) -> str:
    """Return the full path of a searched field, such as ``pruning.pruning_rate`` for ``pruning_rate``.

    Paths in files of earlier versions, such as ``trajectory.pruning_rate``, are converted too.
    """
    if name in PruningSpec.model_fields:
        return f"pruning.{name}"
    section, dot, rest = name.partition(".")
    return f"{OLDER_SECTIONS.get(section, section)}{dot}{rest}"


def assign(raw: dict[str, Any], path: str, value: object) -> None:
    """Set the value at a dotted path in nested mappings, creating missing mappings."""
    *parents, last = path.split(".")
    for part in parents:
        inner = raw.get(part)
        if not isinstance(inner, dict):
            inner = raw[part] = {}
        raw = inner
    raw[last] = value


def domain_values(domain: Domain) -> list[Any]:
    """Return every value of a list or of a range. The range must have a step or consist of integers."""
    if not isinstance(domain, Range):
        return list(domain)
    return [domain.value(i) for i in range(domain.count)]


def holds(domain: Domain, value: Any) -> bool:
    """Return whether a value is in a list, or between the bounds of a range (whatever its step)."""
    if isinstance(domain, Range):
        return isinstance(value, int | float) and domain.low <= value <= domain.high
    return value in domain


def ends(domain: Domain) -> list[Any]:
    """Return every value of a list, or the smallest and the largest value of a range."""
    if not isinstance(domain, Range):
        return list(domain)
    high = domain.high if domain.step is None else domain.value(domain.count - 1)
    return [domain.low, high] if domain.is_integer else [float(domain.low), float(high)]


def read_domain(name: str, domain: object) -> Domain:
    """Read the domain of a field from plain data.

    Raises:
        ValueError: the field cannot be searched, or the data is not a domain.
    """
    path = dotted(name)
    if path.split(".")[0] not in SECTIONS or "." not in path:
        searchable = [*PruningSpec.model_fields, *(f"{s}.*" for s in SECTIONS)]
        raise ValueError(unknown("field to search", name, searchable))
    if isinstance(domain, list | tuple):
        if not domain:
            raise ValueError(f"{name}: the list [] is empty; give at least one value")
        if len(domain) > _MOST_VALUES:
            raise ValueError(f"{name}: {len(domain)} values are too many; give at most {_MOST_VALUES}, or a range")
        if any(domain.index(value) != i for i, value in enumerate(domain)):
            raise ValueError(f"{name}: {quoted(list(domain))} contains duplicates; give each value only once")
        return tuple(domain)
    if isinstance(domain, Mapping):
        try:
            return validate(Range, domain, where=f"{name}: ")
        except SpecError as error:
            raise ValueError(str(error)) from None
    if isinstance(domain, Range):
        return domain
    raise ValueError(f"{name}: {quoted(domain)} is neither a list of values nor a range {{low: ..., high: ...}}")
