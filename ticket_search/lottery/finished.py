"""Operations on a finished trajectory: extract its tickets, train copies of its levels, and compare the copies."""

from collections.abc import Mapping
from typing import Any

from ticket_search.config.trajectory import TrajectorySpec
from ticket_search.errors import StorageError
from ticket_search.lottery.lanes import finish
from ticket_search.lottery.level import Level, from_entry
from ticket_search.lottery.levels import TrajectoryLevels
from ticket_search.lottery.stability import ErrorBetween, errors_between, unknown_errors
from ticket_search.lottery.steps import Steps
from ticket_search.lottery.ticket import Ticket
from ticket_search.lottery.trainer import Log, no_log
from ticket_search.pruning.masks import Mask
from ticket_search.store.level_store import LevelStore
from ticket_search.tasks.task import Task
from ticket_search.training.request import LevelInputs


class FinishedTrajectory:
    """A trajectory whose levels are all in a store.

    Args:
        spec: the trajectory's specification.
        task: the specification's task, on the training device.
        store: the store that contains the trajectory's levels.
        log: receives an event when a copy is started, resumed, finished or reused.
        checkpoint_seconds: the number of seconds between two checkpoints of a copy; None disables checkpoints.

    Raises:
        SpecError: the specification does not fit the data.
    """

    def __init__(
        self,
        spec: TrajectorySpec,
        task: Task,
        store: LevelStore,
        log: Log = no_log,
        checkpoint_seconds: float | None = None,
    ) -> None:
        self.task = task
        self._store = store
        self._levels = TrajectoryLevels(spec, task, store, log, checkpoint_seconds=checkpoint_seconds)
        self._context = self._levels.context

    def of(self, spec: TrajectorySpec) -> "FinishedTrajectory":
        """Return the finished trajectory of another specification, with the same task and the same store."""
        return FinishedTrajectory(spec, self.task, self._store)

    def level_key(self, number: int) -> str:
        """Return the key of level `number`."""
        return self._context.level_key(number)

    def copy_key(self, number: int, copy: int) -> str:
        """Return the store's key for the copy that ``train_copy(number, copy)`` trains."""
        return self._context.copy_key(number, copy)

    def ticket(self, number: int, name: str, figures: Mapping[str, Any]) -> Ticket:
        """Return the ticket that was trained at level `number`, read from the store.

        Raises:
            StorageError: a level that the ticket depends on is damaged or no longer in the store.
        """
        level = self._stored(number)
        start = finish(self._start_of(number, level.mask))
        return Ticket(
            name=name,
            level_key=level.key,
            spec=self._context.spec,
            inputs=self.task.inputs,
            start=start.start,
            shift=start.shift,
            mask=level.mask,
            weights=dict(start.weights),
            figures=figures,
        )

    def train_copy(self, number: int, copy: int) -> Level:
        """Train the ticket of level `number` again, from the same weights but with a different data order.

        For level 0, train the dense network again from `rewind_iteration` on.

        Args:
            number: the level's number.
            copy: the number of the copy, from 0; the level itself does not count as a copy.

        Returns:
            The trained copy, with its final weights.

        Raises:
            StorageError: the ticket's level is damaged or no longer in the store.
        """
        mask = self._stored(number).mask if number > 0 else self._context.whole_mask()
        return finish(self._levels.train_copy(number, mask, copy, lambda: self._start_of(number, mask)))

    def errors_between(self, one: Level, other: Level, points: int) -> list[ErrorBetween]:
        """Return the errors at evenly spaced points on the straight line between the final weights of two levels.

        The points include both ends. If either level diverged, every error is nan.
        """
        if one.diverged or other.diverged:
            return unknown_errors(points)
        network, precision = self._context.network, self._context.spec.training.precision
        return errors_between(one.final_weights, other.final_weights, points, network, self.task, precision)

    def _start_of(self, number: int, mask: Mask) -> Steps[LevelInputs]:
        """Return the inputs from which level `number` was trained; for level 0, return the inputs of its copies."""
        pruning = self._context.pruning
        if number == 0:
            weights = yield from self._levels.starts.rewind_weights()
            return LevelInputs(weights=weights, mask={}, seed=0, start=pruning.rewind_iteration)
        if pruning.retrain == "weights":
            return (yield from self._levels.starts.rewound(mask))
        return (yield from self._levels.starts.after(self._stored(number - 1), mask))

    def _stored(self, number: int) -> Level:
        key = self.level_key(number)
        entry = self._store.load(key)
        if entry is None and (aside := self._store.damaged(key)):
            raise StorageError(
                f"level {number} ({key}) was damaged in the store and was moved aside to {aside!r}; restore the entry "
                "from a backup, or run a new search to train the level again"
            )
        if entry is None:
            raise StorageError(f"level {number} ({key}) is no longer in the store; run a new search to train it again")
        return from_entry(entry, key, reused=True)
