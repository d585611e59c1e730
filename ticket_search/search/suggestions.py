"""The record of suggestions. Each suggestion is stored before its trajectory runs, so that a crash cannot lose it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ticket_search.errors import RunDirectoryError, quoted
from ticket_search.storage.folder import Location, open_folder
from ticket_search.storage.lines import LineFile


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """One draw of the sampler.

    Attributes:
        number: the number of the draw in its search, from 0.
        values: the value of each searched field, by name.
        seed: the seed of the trajectory.
        trajectory_id: the id of the trajectory.
        sampler_state: the attributes that the sampler attached to this draw and needs again after a restart.
    """

    number: int
    values: Mapping[str, Any]
    seed: int
    trajectory_id: str
    sampler_state: Mapping[str, Any] = field(default_factory=dict)


class SuggestionRecord:
    """The file ``suggestions.jsonl`` of a run directory, with one JSON line for each suggestion, in order."""

    def __init__(self, run_dir: Location) -> None:
        self._folder = open_folder(run_dir)
        self._lines = LineFile(self._folder, "suggestions")

    def append(self, suggestion: Suggestion) -> None:
        """Write a suggestion. Return only once it would survive a power failure."""
        self._lines.append(json.dumps(asdict(suggestion)))

    def read(self) -> list[Suggestion]:
        """Read all suggestions.

        Raises:
            RunDirectoryError: a line is damaged or missing.
        """
        try:
            found = [_parse(line) for line in self._lines.read()]
        except (ValueError, TypeError) as error:
            raise self.damaged(error) from None
        for place, suggestion in enumerate(found):
            if suggestion.number != place:
                raise self.damaged(f"line {place + 1} contains suggestion {suggestion.number} instead of {place}")
        return found

    def of(self, trajectory_id: str) -> Suggestion:
        """Return the suggestion for a trajectory that is in the tables.

        Raises:
            RunDirectoryError: a line is damaged or missing.
        """
        found = next((s for s in self.read() if s.trajectory_id == trajectory_id), None)
        if found is None:
            raise self.damaged(f"it lacks the trajectory {trajectory_id!r}, which is in the tables")
        return found

    def damaged(self, reason: object) -> RunDirectoryError:
        """Return the error for a damaged record."""
        return RunDirectoryError(f"{self._folder.place('suggestions.jsonl')!r} is damaged: {reason}")


_KINDS = {"number": int, "values": dict, "seed": int, "trajectory_id": str, "sampler_state": dict}


def _parse(line: str) -> Suggestion:
    suggestion = Suggestion(**json.loads(line))
    for name, kind in _KINDS.items():
        if not isinstance(value := getattr(suggestion, name), kind):
            raise TypeError(f"its {name} must be of type {kind.__name__}, not {quoted(value)}")
    return suggestion
