"""Read a search space file, and apply the settings from the command line to it."""

import copy
import stat
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError, YAMLWarning

from ticket_search.config.base import validate
from ticket_search.config.older import with_newer_sections
from ticket_search.config.search import CHECKED_BEFORE, SearchSpec
from ticket_search.config.space import assign, dotted
from ticket_search.errors import SpecError, quoted, shortened

#: The maximum size of a search space file. Parsing takes about 15 s per megabyte; the shipped files are below 1 kB.
_MOST_BYTES = 1_000_000


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML 1.2, in which ``0100`` is 100, ``1:30`` and ``yes`` are strings, and ``1e-3`` is a number.

    Raises:
        SpecError: the text is not YAML, or a mapping has the same key twice; the message names `source`, the line and
            the column.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", YAMLWarning)  # a repeated anchor would cause a ten-line warning
            return YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = str(error.problem)
        if isinstance(error, DuplicateKeyError):  # the rest of the message quotes both values in full
            problem = problem.partition(" with value")[0].replace("found duplicate key", "a second key")
        raise SpecError(f"{source}{where}: not valid YAML: {shortened(problem, 200)}") from None
    except (YAMLError, RecursionError) as error:
        raise SpecError(f"{source}: not valid YAML: {shortened(str(error).splitlines()[0], 200)}") from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        # ruamel.yaml 0.19 raises these for `!!bool x`, 2024-99-99, or an integer of more than 4,300 digits.
        reason = shortened(str(error).partition(";")[0], 200)
        raise SpecError(f"{source}: not valid YAML: a value cannot be read: {reason}") from None


def load_search(path: Path, settings: tuple[str, ...] = ()) -> SearchSpec:
    """Read a search space file.

    Args:
        path: the YAML file.
        settings: ``KEY=VALUE`` strings that override the file; KEY is a dotted path in the file, VALUE is YAML.

    Raises:
        SpecError: the file or a setting is not valid; the message has a line for each problem.
    """
    return parse_search(_read(path), str(path), settings)


def _read(path: Path) -> str:
    name = quoted(str(path))
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe may block, and reading /dev/zero never ends
            raise SpecError(f"cannot read the search space {name}: it is not a regular file; give a YAML file")
        if status.st_size > _MOST_BYTES:
            raise SpecError(
                f"cannot read the search space {name}: it has {status.st_size} bytes; give at most {_MOST_BYTES}"
            )
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot read the search space {name}: {error}") from None


def parse_search(text: str, source: str, settings: tuple[str, ...] = (), *, is_checked: bool = False) -> SearchSpec:
    """Build a search from the text of its file; see `load_search`.

    Args:
        text: the content of the file.
        source: the name of the file in messages.
        settings: see `load_search`.
        is_checked: whether all points were checked when the file was written; if so, they are not checked again.

    Raises:
        SpecError: the file or a setting is not valid; the message has a line for each problem.
    """
    raw = parse_yaml(text, source)
    if not isinstance(raw, dict):
        raise SpecError(f"{source}: a search space is a mapping of keys to values, not {quoted(raw)}")
    try:
        raw = with_newer_sections(raw)
    except ValueError as error:
        raise SpecError(f"{source}: {error}") from None
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise SpecError(f"--set {quoted(setting)} is not KEY=VALUE; for example --set training.iterations=500")
        _set(raw, key, parse_yaml(value, f"--set {shortened(key)}"))
    where = f"{source} with --set: " if settings else f"{source}: "
    return validate(SearchSpec, raw, where=where, context=CHECKED_BEFORE if is_checked else None)


def with_settings(search: SearchSpec | Mapping[str, Any], settings: Mapping[str, Any]) -> SearchSpec:
    """Return a search with some of its keys replaced.

    Args:
        search: the search, or the content of its file as plain data.
        settings: maps keys to new values. A key is a dotted path in the file; ``space.NAME`` is a field of the space.

    Raises:
        SpecError: the resulting search is not valid; the message has a line for each problem.
    """
    if isinstance(search, SearchSpec) and not settings:
        return search
    raw = search.model_dump(mode="json") if isinstance(search, SearchSpec) else copy.deepcopy(dict(search))
    try:
        raw = with_newer_sections(raw)
    except ValueError as error:
        raise SpecError(str(error)) from None
    for key, value in settings.items():
        _set(raw, key, value)
    return validate(SearchSpec, raw)


def _set(raw: dict[str, Any], key: str, value: Any) -> None:
    # In `space`, dots are part of a key: "training.optimizer.lr" is one key, not a path through nested mappings.
    if key.startswith("space."):
        space = raw.setdefault("space", {})
        if isinstance(space, dict):
            space[key.removeprefix("space.")] = value
    else:
        assign(raw, dotted(key), value)
