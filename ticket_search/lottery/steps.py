"""A trajectory as a generator of steps: it requests trainings, waits for other processes, and yields its levels.

`lanes` fulfils the requests; it may hold many trajectories and train their levels together.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from ticket_search.lottery.level import Level
from ticket_search.training.request import TrainRequest


@dataclass(frozen=True, kw_only=True)
class Wait:
    """A pause while another trajectory, in this process or another, computes the entry that is needed next.

    Attributes:
        seconds: how long to wait before trying again.
    """

    seconds: float


T = TypeVar("T")
Step = TrainRequest | Wait | Level
#: Yields steps and returns a value. It receives the `LevelOutputs` of a `TrainRequest`, and None for any other step.
Steps = Generator[Step, Any, T]
