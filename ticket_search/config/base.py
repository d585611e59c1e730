"""What every part of a specification shares: frozen, strict, and errors a person can act on."""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from ticket_search.errors import SpecError


class Spec(BaseModel):
    """A frozen, keyword-only piece of specification. Unknown keys and wrong types are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)


def as_tuple(value: object) -> object:
    """A YAML list as a tuple; anything else as it is."""
    return tuple(value) if isinstance(value, list) else value


#: A tuple field that a YAML list may fill (strict validation alone would refuse the list).
FromList = BeforeValidator(as_tuple)
Floats = Annotated[tuple[float, ...], FromList]


def unknown(kind: str, value: object, known: Sequence[str]) -> str:
    """The message for a name that is not among the known ones, with the closest of them."""
    close = difflib.get_close_matches(str(value), known, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"unknown {kind} {value!r}{hint}; known: {', '.join(known)}"


S = TypeVar("S", bound=Spec)


def validate(cls: type[S], raw: Mapping[str, Any], *, where: str = "", context: Any = None) -> S:
    """Build `cls` from plain data.

    Args:
        cls: the class to build.
        raw: mappings, lists and scalars, as a YAML file gives them.
        where: put before each field's path in a message, e.g. ``"space.lr: "``.
        context: for the validators of the class, see pydantic's `ValidationInfo`.

    Raises:
        SpecError: one line for each field that is wrong.
    """
    try:
        return cls.model_validate(raw, context=context)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        # A union reports every branch that did not fit: keep the first line for each field.
        problems.sort(key=lambda p: p["loc"][-1:] == ("int",))  # of "a number" and "an integer", the former
        lines = {_path(p["loc"]): _explain(cls, p) for p in reversed(problems)}
        raise SpecError(
            "\n".join(where + (f"{path}: " if path else "") + lines[path] for path in reversed(lines))
        ) from None


def _path(loc: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in loc if not (isinstance(part, str) and "[" in part) and part not in _BRANCHES)


#: Pydantic names the branches of a union in the location of an error; they are not keys of the file.
_BRANCHES = {"int", "float", "str", "bool", "Range"}


def _explain(cls: type[Spec], problem: Any) -> str:
    match problem["type"]:
        case "extra_forbidden":
            return unknown("key", problem["loc"][-1], sorted(_fields_at(cls, problem["loc"][:-1])))
        case "missing":
            return "is missing"
        case "value_error":
            return str(problem["ctx"]["error"])
        case _:
            message = problem["msg"][0].lower() + problem["msg"][1:]
            for python, plain in _PLAIN_WORDS.items():
                message = re.sub(python, plain, message)
            return f"{_shorten(problem['input'])} is not valid: {message}"


_PLAIN_WORDS = {"a valid tuple": "a list", r"a valid dictionary( or instance of \w+)?": "a mapping of keys to values"}


def _shorten(value: object, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _fields_at(cls: type[Spec], loc: tuple[int | str, ...]) -> list[str]:
    """The field names of the specification found at the path `loc` below `cls`."""
    for part in loc:
        field = cls.model_fields.get(str(part))
        if field is not None:
            cls = next(iter(_spec_types(field.annotation)), cls)
    return list(cls.model_fields)


def _spec_types(annotation: Any) -> list[type[Spec]]:
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return [annotation]
    return [found for argument in getattr(annotation, "__args__", ()) for found in _spec_types(argument)]
