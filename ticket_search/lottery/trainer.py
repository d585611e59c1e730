"""Train each level once: levels in the store are reused, and every training run is logged."""

from collections.abc import Callable
from typing import Protocol

from ticket_search.lottery.context import Context
from ticket_search.lottery.level import Level, from_entry
from ticket_search.lottery.steps import Steps, Wait
from ticket_search.store.level_store import Checkpoint, Claim, Entry, LevelStore
from ticket_search.training.checkpoints import TrainingState
from ticket_search.training.outcome import LevelOutputs
from ticket_search.training.request import LevelInputs, TrainRequest


class Log(Protocol):
    """Receives the events of a trajectory, e.g. ``EventLog.log``."""

    def __call__(self, event: str, **fields: object) -> None:
        """Record one event."""


def no_log(event: str, **fields: object) -> None:
    """Record nothing."""


class Trainer:
    """Trains the levels of one trajectory that are not in the store yet.

    Args:
        context: the trajectory's context.
        store: where levels are looked up and saved.
        log: receives an event when a level is started, resumed, finished or reused.
        owner_finished: see `run_trajectory`.
        owner: see `run_trajectory`.
        checkpoint_seconds: see `run_trajectory`.
    """

    def __init__(
        self,
        context: Context,
        store: LevelStore,
        log: Log,
        *,
        owner_finished: Callable[[str], bool | None],
        owner: str | None,
        checkpoint_seconds: float | None,
    ) -> None:
        self.owner = owner
        self.store = store
        self._context = context
        self._log = log
        self._owner_finished = owner_finished
        self._checkpoint_seconds = checkpoint_seconds

    def level(self, number: int, key: str, compute: Callable[[], Steps[Entry]], **fields: object) -> Steps[Level]:
        """Return the level with the given key, loaded from the store or else computed.

        Args:
            number: the level's number.
            key: the level key.
            compute: computes the level's entry if the store has none.
            fields: further fields for the level's events.
        """

        def compute_and_log() -> Steps[Entry]:
            self._log("level_started", level_key=key, level=number, **fields)
            return (yield from compute())

        def finished() -> None:
            self._log("level_finished", level_key=key, level=number, **fields)

        entry, found = yield from self.found_or_computed(key, compute_and_log, saved=finished)
        reused = found and (self.owner is None or entry.record.get("trainer") != self.owner)
        if found and not reused:
            # An earlier process trained the level for this trajectory, but may have died before logging it.
            if self._owner_finished(key) is False:
                finished()
            self.store.tidy(key)
        if found:
            self._log("level_reused", level_key=key, level=number, **fields)
        return from_entry(entry, key, reused=reused)

    def found_or_computed(
        self, key: str, compute: Callable[[], Steps[Entry]], saved: Callable[[], None] = lambda: None
    ) -> Steps[tuple[Entry, bool]]:
        """Return the entry under a key, and whether it was already in the store.

        If another process is computing the entry, wait for it; otherwise, claim the key and compute the entry here.

        Args:
            key: the entry's key.
            compute: called while the claim on the key is held.
            saved: called once the computed entry is in the store, before the claim is released.
        """
        while (claim := self.store.claim(key)) is None:
            yield Wait(seconds=self.store.poll_seconds)
        if not isinstance(claim, Claim):
            return claim, True
        with claim:
            computed = yield from compute()
            entry = claim.save(computed)
            if entry is computed:
                saved()
                self.store.checkpoint(key).remove()
        return entry, entry is not computed

    def train(self, inputs: LevelInputs, key: str) -> Steps[LevelOutputs]:
        """Request a training run and return its outputs.

        If the store has a checkpoint under the key, the run resumes from the checkpoint.
        """
        checkpoints = None
        if self._checkpoint_seconds is not None:
            checkpoints = _Checkpoints(self.store.checkpoint(key), self._checkpoint_seconds, key, self._log)
        context = self._context
        outputs: LevelOutputs = yield TrainRequest(
            level=inputs,
            network=context.network,
            task=context.task,
            training=context.spec.training,
            key=key,
            model=context.spec.model.name,
            executor=context.executor,
            checkpoints=checkpoints,
        )
        return outputs


class _Checkpoints:
    """Loads and saves the checkpoints of one level in the store. Logs when a training run resumes from one."""

    def __init__(self, checkpoint: Checkpoint, seconds: float, key: str, log: Log) -> None:
        self.seconds = seconds
        self._checkpoint = checkpoint
        self._key = key
        self._log = log

    def load(self) -> TrainingState | None:
        entry = self._checkpoint.load()
        if entry is None:
            return None
        state = TrainingState(record=entry.record, tensors=entry.tensors)
        self._log("level_continued", level_key=self._key, iteration=state.iteration)
        return state

    def save(self, state: TrainingState) -> None:
        self._checkpoint.save(Entry(record=state.record, tensors=state.tensors))
