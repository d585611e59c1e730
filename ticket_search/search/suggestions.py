"""The record of suggestions: each is in storage before it runs, so that no crash makes the sampler forget one."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ticket_search.errors import RunDirectoryError, quoted
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
            found = [_parse(line) for line in self._lines.read()]
        except (ValueError, TypeError) as error:
            raise self.damaged(error) from None
        for place, suggestion in enumerate(found):
            if suggestion.number != place:
                raise self.damaged(f"suggestion {suggestion.number} stands in place {place}")
        return found

    def of(self, trajectory_id: str) -> Suggestion:
        """The suggestion of a trajectory that is in the tables.

        Raises:
            RunDirectoryError: a line is damaged, or missing.
        """
        found = next((s for s in self.read() if s.trajectory_id == trajectory_id), None)
        if found is None:
            raise self.damaged(f"it lacks the trajectory {trajectory_id!r} of the tables")
        return found

    def damaged(self, reason: object) -> RunDirectoryError:
        """The error that says what is wrong with the record."""
        return RunDirectoryError(f"{self._folder.place('suggestions.jsonl')!r} is damaged: {reason}")


_KINDS = {"number": int, "values": dict, "seed": int, "trajectory_id": str, "sampler_state": dict}


def _parse(line: str) -> Suggestion:
    suggestion = Suggestion(**json.loads(line))
    for name, kind in _KINDS.items():
        if not isinstance(value := getattr(suggestion, name), kind):
            raise TypeError(f"its {name} {quoted(value)} is no {kind.__name__}")
    return suggestion
