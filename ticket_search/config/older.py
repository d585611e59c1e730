"""Old names that search space files, run directories and ticket files of earlier versions may still use."""

from collections.abc import Mapping
from typing import Any

#: Maps the old name of each renamed section to its current name. Level keys and identities are still computed from the
#: old names, so renaming a section does not change them.
OLDER_SECTIONS = {"trajectory": "pruning"}
_OLDER_NAMES = {new: old for old, new in OLDER_SECTIONS.items()}


def with_newer_sections(raw: Any) -> Any:
    """Rename the sections of a specification's plain data to their current names. Return any other value unchanged.

    Raises:
        ValueError: a section is given under both names.
    """
    if not isinstance(raw, Mapping):
        return raw
    for old, new in OLDER_SECTIONS.items():
        if old in raw and new in raw:
            raise ValueError(f"{old!r} is the old name of the section {new!r}; give the section once, as {new!r}")
    return {OLDER_SECTIONS.get(name, name): value for name, value in raw.items()}


def with_older_sections(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return a specification's plain data with the old names of its sections, as needed to compute identities."""
    return {_OLDER_NAMES.get(name, name): value for name, value in plain.items()}


def older_path(path: str) -> str:
    """Return a field's dotted path with the old name of its section."""
    section, dot, rest = path.partition(".")
    return f"{_OLDER_NAMES.get(section, section)}{dot}{rest}"
