"""``docs/search_space_reference.md`` lists every key of a search space file with its default."""

import re
from pathlib import Path
from typing import get_args

import yaml

from ticket_search.config.base import Spec
from ticket_search.config.search import SearchSpec
from ticket_search.config.space import Range

TEXT = (Path(__file__).parents[1] / "docs" / "search_space_reference.md").read_text()
ROW = re.compile(r"^\| `([\w.]+)` \| (.+?) \| (required|`.+?`) \| .*\|$", re.M)


def specs_in(annotation):
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return [annotation]
    return [spec for part in get_args(annotation) for spec in specs_in(part)]


def keys(spec, prefix=""):
    """Yield each key of a section and its default as plain data, or "required" if the key has no default."""
    for name, field in spec.model_fields.items():
        default = field.get_default()
        if field.is_required():
            default = "required"
        elif isinstance(default, Spec):
            default = {}
        yield f"{prefix}{name}", list(default) if isinstance(default, tuple) else default
        for inner in specs_in(field.annotation) if name != "space" else ():
            yield from keys(inner, f"{prefix}{name}.")


def test_every_key_has_a_line_with_its_default():
    documented = {
        name: default if default == "required" else yaml.safe_load(default.strip("`"))
        for name, _, default in ROW.findall(TEXT)
    }
    assert documented == dict(keys(SearchSpec)) | dict(keys(Range))
