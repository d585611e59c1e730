"""The points of a finite space that have not been run with every seed."""

import json
import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ticket_search.config.space import Domain, Range


class FreePoints:
    """The free points of a finite space, in the order of `SearchSpec.grid`.

    A space may have millions of points, so only the positions of taken points are stored.

    Args:
        space: the domain of each field, by name; every range must have finitely many values.
        seeds: the number of seeds with which each point is run.
    """

    def __init__(self, space: Mapping[str, Domain], seeds: int) -> None:
        self._space, self._seeds = space, seeds
        self._choices = {
            name: {json.dumps(value): i for i, value in enumerate(domain)}
            for name, domain in space.items()
            if not isinstance(domain, Range)
        }
        self._sizes = {
            name: domain.count if isinstance(domain, Range) else len(domain) for name, domain in space.items()
        }
        self._runs: Counter[int] = Counter()
        self._taken: list[int] = []  # the grid positions of points that are no longer free, in ascending order

    @property
    def count(self) -> int:
        """The number of free points."""
        return math.prod(self._sizes.values()) - len(self._taken)

    def point(self, number: int) -> dict[str, Any]:
        """Return the free point with the given number, from 0 to `count` - 1."""
        # The number of free positions before `taken[n]` is `taken[n] - n`.
        place = number + bisect_right(range(len(self._taken)), number, key=lambda n: self._taken[n] - n)
        values = {}
        for name, domain in reversed(list(self._space.items())):
            place, i = divmod(place, self._sizes[name])
            values[name] = domain.value(i) if isinstance(domain, Range) else domain[i]
        return {name: values[name] for name in self._space}

    def note_run(self, values: Mapping[str, Any]) -> None:
        """Record that a point is run with one more seed. After the last seed, the point is no longer free."""
        place = self._place(values)
        self._runs[place] += 1
        if self._runs[place] == self._seeds:
            self._take(place)

    def take(self, values: Mapping[str, Any]) -> None:
        """Record that a point is no longer free."""
        self._take(self._place(values))

    def _take(self, place: int) -> None:
        at = bisect_left(self._taken, place)
        if self._taken[at : at + 1] != [place]:
            self._taken.insert(at, place)

    def _place(self, values: Mapping[str, Any]) -> int:
        place = 0
        for name, domain in self._space.items():
            value = values[name]
            if isinstance(domain, Range):
                i = round((value - domain.low) / (domain.step or 1))
            else:
                i = self._choices[name][json.dumps(value)]
            place = place * self._sizes[name] + i
        return place
