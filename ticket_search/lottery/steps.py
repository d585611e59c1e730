"""A trajectory as a generator of steps: it asks for trainings, waits for others, and gives its levels.

What it asks for somebody else does, who may hold many trajectories and train their levels together; see `lanes`.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from ticket_search.lottery.level import Level
from ticket_search.training.request import TrainRequest


@dataclass(frozen=True, kw_only=True)
class Wait:
    """Somebody else, in this process or another, is computing what is needed next.

    Attributes:
        seconds: until it is worth asking again.
    """

    seconds: float


T = TypeVar("T")
Step = TrainRequest | Wait | Level
#: Yields steps and returns a value. It is sent the `LevelOutputs` of a `TrainRequest`, and None for any other step.
Steps = Generator[Step, Any, T]
