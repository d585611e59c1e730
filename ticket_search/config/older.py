"""Names from older search space files, run directories and tickets. They keep working."""

from collections.abc import Mapping
from typing import Any

#: A section's older name -> its present name. Level keys and identities are digests over the older name.
OLDER_SECTIONS = {"trajectory": "pruning"}
_OLDER_NAMES = {new: old for old, new in OLDER_SECTIONS.items()}


def with_newer_sections(raw: Any) -> Any:
    """Rename the sections of a specification's plain data to their present names; return anything else unchanged.

    Raises:
        ValueError: a section is given under both names.
    """
    if not isinstance(raw, Mapping):
        return raw
    for old, new in OLDER_SECTIONS.items():
        if old in raw and new in raw:
            raise ValueError(f"{old!r} is the older name of the section {new!r}; give the section once, as {new!r}")
    return {OLDER_SECTIONS.get(name, name): value for name, value in raw.items()}


def with_older_sections(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Rename sections to their oldest names, from which identities are computed."""
    return {_OLDER_NAMES.get(name, name): value for name, value in plain.items()}


def older_path(path: str) -> str:
    """A field's dotted path with the oldest name of its section."""
    section, dot, rest = path.partition(".")
    return f"{_OLDER_NAMES.get(section, section)}{dot}{rest}"
