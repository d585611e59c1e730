from collections import Counter
from dataclasses import dataclass, field

import pytest

from ticket_search.lottery.trajectory import run_trajectory
from ticket_search.store.level_store import LevelStore


@dataclass
class Bench:
    """A test bench that runs trajectories on the digits and records events, training inputs and training outputs."""

    task: object
    events: list = field(default_factory=list)
    inputs: list = field(default_factory=list)
    levels: list = field(default_factory=list)
    outputs: list = field(default_factory=list)

    def run(self, spec, store, rewind_iterations=()):
        log = lambda event, **fields: self.events.append((event, fields["level"]))  # noqa: E731
        return list(run_trajectory(spec, self.task, store, rewind_iterations=rewind_iterations, log=log))

    def counts(self):
        counted = Counter(event for event, _ in self.events)
        self.events.clear()
        return dict(counted)


@pytest.fixture
def bench(digits, trainings):
    return Bench(digits, levels=trainings.levels, inputs=trainings.inputs, outputs=trainings.outputs)


@pytest.fixture
def stores(tmp_path):
    numbers = iter(range(99))
    return lambda: LevelStore(tmp_path / f"store{next(numbers)}")
