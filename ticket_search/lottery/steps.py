"""A trajectory as a generator of steps: it requests training runs, waits for other processes, and yields its levels.

The module `lanes` carries out these requests. It can run many trajectories at once and train their levels together.
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
        seconds: the number of seconds to wait before trying again.
    """

    seconds: float


T = TypeVar("T")
Step = TrainRequest | Wait | Level
#: A generator that yields steps and returns a value of type T. Its caller sends the `LevelOutputs` in reply to a
#: `TrainRequest`, and None in reply to any other step.
Steps = Generator[Step, Any, T]
