"""The points of a finite space that have not been run with every seed yet."""

import json
import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ticket_search.config.space import Domain, Range


class FreePoints:
    """The free points of a finite space, in the order of `SearchSpec.grid`.

    Neither the points nor their trajectories are listed, as a space may have millions: only the places that are taken.

    Args:
        space: field name -> its values; every range is finite.
        seeds: how many seeds each point is run with.
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
        self._taken: list[int] = []  # the places that are not free, ascending

    @property
    def count(self) -> int:
        """How many points are free."""
        return math.prod(self._sizes.values()) - len(self._taken)

    def point(self, number: int) -> dict[str, Any]:
        """The free point with this number, from 0 to `count` - 1."""
        # The n-th taken place has `taken[n] - n` free places before it.
        place = number + bisect_right(range(len(self._taken)), number, key=lambda n: self._taken[n] - n)
        values = {}
        for name, domain in reversed(list(self._space.items())):
            place, i = divmod(place, self._sizes[name])
            values[name] = domain.value(i) if isinstance(domain, Range) else domain[i]
        return {name: values[name] for name in self._space}

    def note_run(self, values: Mapping[str, Any]) -> None:
        """Note that a point is run with one more seed; with the last of them it is taken."""
        place = self._place(values)
        self._runs[place] += 1
        if self._runs[place] == self._seeds:
            self._take(place)

    def take(self, values: Mapping[str, Any]) -> None:
        """Note that a point is not free any more."""
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
