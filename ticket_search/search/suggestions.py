"""The record of suggestions: each is on disk before it runs, so that no crash makes the sampler forget one."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ticket_search.errors import RunDirectoryError
from ticket_search.files import append_line, read_lines

FILE_NAME = "suggestions.jsonl"


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """One draw of parameters.

    Attributes:
        number: counts the draws of a search from 0.
        values: searched field -> value.
        seed: the run's seed.
        trajectory_id: of the trajectory these make.
        sampler_state: what the sampler noted of this draw and must find again.
    """

    number: int
    values: Mapping[str, Any]
    seed: int
    trajectory_id: str
    sampler_state: Mapping[str, Any] = field(default_factory=dict)


class SuggestionRecord:
    """The suggestions of a run directory, one JSON line each, in the order in which they were made."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / FILE_NAME

    def append(self, suggestion: Suggestion) -> None:
        """Returns once the suggestion is on the disk."""
        append_line(self._path, json.dumps(asdict(suggestion)))

    def read(self) -> list[Suggestion]:
        """Every suggestion made so far.

        Raises:
            RunDirectoryError: a line is damaged.
        """
        try:
            return [Suggestion(**json.loads(line)) for line in read_lines(self._path)]
        except (ValueError, TypeError) as error:
            raise RunDirectoryError(f"{str(self._path)!r} is damaged: {error}") from None
