"""Names that older search space files, run directories and tickets have, and that go on working."""

from collections.abc import Mapping
from typing import Any

#: A section's older name -> its name. Level keys and identities are digests that contain the older one.
OLDER_SECTIONS = {"trajectory": "pruning"}
_OLDER_NAMES = {new: old for old, new in OLDER_SECTIONS.items()}


def with_newer_sections(raw: Any) -> Any:
    """Plain data of a specification with each section under its present name; anything but a mapping as it is.

    Raises:
        ValueError: a section stands under both names.
    """
    if not isinstance(raw, Mapping):
        return raw
    for old, new in OLDER_SECTIONS.items():
        if old in raw and new in raw:
            raise ValueError(f"{old!r} is the older name of the section {new!r}; give the section once, as {new!r}")
    return {OLDER_SECTIONS.get(name, name): value for name, value in raw.items()}


def with_older_sections(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data as identities are computed from: each section under its oldest name."""
    return {_OLDER_NAMES.get(name, name): value for name, value in plain.items()}


def older_path(path: str) -> str:
    """A field's dotted path with the oldest name of its section."""
    section, dot, rest = path.partition(".")
    return f"{_OLDER_NAMES.get(section, section)}{dot}{rest}"
