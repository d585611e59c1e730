"""The record of suggestions: each is in storage before it runs, so that no crash makes the sampler forget one."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ticket_search.errors import RunDirectoryError
from ticket_search.storage.folder import Location, open_folder
from ticket_search.storage.lines import LineFile


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
    """The suggestions of a run directory, one JSON line each in ``suggestions.jsonl``, in the order of their making."""

    def __init__(self, run_dir: Location) -> None:
        self._folder = open_folder(run_dir)
        self._lines = LineFile(self._folder, "suggestions")

    def append(self, suggestion: Suggestion) -> None:
        """Returns once the suggestion would survive a power cut."""
        self._lines.append(json.dumps(asdict(suggestion)))

    def read(self) -> list[Suggestion]:
        """Every suggestion made so far.

        Raises:
            RunDirectoryError: a line is damaged, or missing.
        """
        try:
            found = [Suggestion(**json.loads(line)) for line in self._lines.read()]
        except (ValueError, TypeError) as error:
            raise RunDirectoryError(f"{self._folder.place('suggestions.jsonl')!r} is damaged: {error}") from None
        for place, suggestion in enumerate(found):
            if suggestion.number != place:
                what = f"suggestion {suggestion.number} stands in place {place}"
                raise RunDirectoryError(f"{self._folder.place('suggestions.jsonl')!r} is damaged: {what}")
        return found
