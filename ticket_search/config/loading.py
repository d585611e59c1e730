"""Reading a search space file, and what the command line sets on top of it."""

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ticket_search.config.base import validate
from ticket_search.config.older import with_newer_sections
from ticket_search.config.search import CHECKED_BEFORE, SearchSpec
from ticket_search.config.space import assign, dotted
from ticket_search.errors import SpecError


class _Loader(yaml.SafeLoader):
    """YAML 1.1, but ``1e-3`` is a number, not a string, and a key given twice is an error, not the last one's value."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Called before a mapping is made of a node; merges ``<<`` into the node, once."""
        flattened = self.__dict__.setdefault("_flattened", set())
        if id(node) in flattened:
            return
        flattened.add(id(node))
        seen = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            name = self.construct_object(key, deep=True)
            if isinstance(name, str) and name in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {name!r} stands twice", problem_mark=key.start_mark)
            if isinstance(name, str):
                seen.add(name)
        super().flatten_mapping(node)


_Loader.yaml_implicit_resolvers = {key: list(value) for key, value in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_FLOAT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
for _first in "-+0123456789":
    _Loader.yaml_implicit_resolvers.setdefault(_first, []).insert(0, ("tag:yaml.org,2002:float", _FLOAT))


def parse_yaml(text: str, source: str) -> Any:
    """Plain data from YAML text.

    Raises:
        SpecError: the text is not YAML; the message names `source`, the line and the column.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise SpecError(f"{source}{where}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise SpecError(f"{source}: not valid YAML: {error}") from None


def load_search(path: Path, settings: tuple[str, ...] = ()) -> SearchSpec:
    """Read a search space file.

    Args:
        path: the YAML file.
        settings: ``KEY=VALUE`` strings applied on top; KEY is a dotted path of the file, VALUE is YAML.

    Raises:
        SpecError: one message with a line for each thing that is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot read the search space {str(path)!r}: {error}") from None
    return parse_search(text, str(path), settings)


def parse_search(text: str, source: str, settings: tuple[str, ...] = (), *, is_checked: bool = False) -> SearchSpec:
    """A search from the text of its file; see `load_search`.

    Args:
        text: of the file.
        source: names the file in messages.
        settings: see `load_search`.
        is_checked: its points were checked when it was written, and are not checked again.
    """
    raw = parse_yaml(text, source)
    if not isinstance(raw, dict):
        raise SpecError(f"{source}: a search space is a mapping of keys to values, not {raw!r}")
    try:
        raw = with_newer_sections(raw)
    except ValueError as error:
        raise SpecError(f"{source}: {error}") from None
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise SpecError(f"--set {setting!r} is not KEY=VALUE; for example --set training.iterations=500")
        _set(raw, key, parse_yaml(value, f"--set {key}"))
    where = f"{source} with --set: " if settings else f"{source}: "
    return validate(SearchSpec, raw, where=where, context=CHECKED_BEFORE if is_checked else None)


def with_settings(search: SearchSpec | Mapping[str, Any], settings: Mapping[str, Any]) -> SearchSpec:
    """A search with some of its keys set.

    Args:
        search: the search, or the plain data of its file.
        settings: dotted key of the file -> value; ``space.NAME`` is a field of the space.

    Raises:
        SpecError: one message with a line for each thing that is wrong.
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
    # Dots in a searched field's name belong to the name.
    if key.startswith("space."):
        space = raw.setdefault("space", {})
        if isinstance(space, dict):
            space[key.removeprefix("space.")] = value
    else:
        assign(raw, dotted(key), value)
