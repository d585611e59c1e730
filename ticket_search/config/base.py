"""The base class of all parts of a specification, and strict validation with messages that say what to change."""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from ticket_search.errors import SpecError, quoted, shortened


class Spec(BaseModel):
    """The base class of all parts of a specification.

    Parts are immutable and are built from keyword arguments. Unknown keys and wrong types are errors.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)


def as_tuple(value: object) -> object:
    """Turn a YAML list into a tuple, and return anything else unchanged."""
    return tuple(value) if isinstance(value, list) else value


#: Lets a tuple field accept a YAML list, which strict validation would otherwise reject.
FromList = BeforeValidator(as_tuple)
Floats = Annotated[tuple[float, ...], FromList]


def unknown(kind: str, value: object, known: Sequence[str]) -> str:
    """Return an error message about an unknown name. It suggests the closest known name and lists all known names."""
    close = difflib.get_close_matches(str(value)[:100], known, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"unknown {kind} {quoted(value)}{hint}; known: {', '.join(known)}"


S = TypeVar("S", bound=Spec)
#: The maximum number of problems that a message describes. Without this limit, the message about a file in the wrong
#: format would have a line for every key.
_MOST_LINES = 3


def validate(cls: type[S], raw: Mapping[str, Any], *, where: str = "", context: Any = None) -> S:
    """Validate plain data, and build an instance of `cls` from it.

    Args:
        cls: the class to build.
        raw: mappings, lists and scalars, as read from a YAML file.
        where: the prefix of each line of the error message, e.g. ``"space.lr: "``.
        context: passed to the validators of the class; see pydantic's `ValidationInfo`.

    Raises:
        SpecError: some fields are invalid; the message describes the first few, one per line, and counts the others.
    """
    try:
        return cls.model_validate(raw, context=context)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        # For a union, pydantic reports one error per branch. Keep one error per field. If a field may be an int or a
        # float, keep the error of the float branch, because it asks for any number instead of an integer.
        problems.sort(key=lambda p: p["loc"][-1:] in (("int",), ("constrained-int",)))
        by_path = {_path(problem["loc"]): problem for problem in reversed(problems)}
        lines = [
            where + (f"{path}: " if path else "") + _explain(cls, by_path[path])
            for path in list(reversed(by_path))[:_MOST_LINES]
        ]
        if len(by_path) > _MOST_LINES:
            lines.append(f"and {len(by_path) - _MOST_LINES:,} more")
        raise SpecError("\n".join(lines)) from None


def _path(loc: tuple[int | str, ...]) -> str:
    parts = (part for part in loc if not (isinstance(part, str) and "[" in part) and part not in _BRANCHES)
    return ".".join(shortened(str(part)) for part in parts)


#: Names of union branches, which pydantic adds to an error's location although they are not keys of the file.
_BRANCHES = {"int", "constrained-int", "float", "str", "bool", "Range"}


def _explain(cls: type[Spec], problem: Any) -> str:
    value = problem["input"]
    match problem["type"]:
        case "extra_forbidden":
            return unknown("key", problem["loc"][-1], sorted(_fields_at(cls, problem["loc"][:-1])))
        case "missing":
            return "is missing"
        case "value_error":
            return str(problem["ctx"]["error"])
        case "int_type" if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
            return f"{value} is not valid: write {int(value)}, not {value}"
        case _:
            message = problem["msg"][0].lower() + problem["msg"][1:]
            for python, plain in _PLAIN_WORDS.items():
                message = re.sub(python, plain, message)
            return f"{quoted(value)} is not valid: {message}"


#: Above this limit, not every integer can be represented as a float.
_EXACT = 2**53
_PLAIN_WORDS = {"a valid tuple": "a list", r"a valid dictionary( or instance of \w+)?": "a mapping of keys to values"}


def _fields_at(cls: type[Spec], loc: tuple[int | str, ...]) -> list[str]:
    """Return the field names of the specification at the path `loc` below `cls`."""
    for part in loc:
        field = cls.model_fields.get(str(part))
        if field is not None:
            cls = next(iter(_spec_types(field.annotation)), cls)
    return list(cls.model_fields)


def _spec_types(annotation: Any) -> list[type[Spec]]:
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return [annotation]
    return [spec for argument in getattr(annotation, "__args__", ()) for spec in _spec_types(argument)]
