"""Trains levels, each once: what the store knows is not trained again, and the log is told of what is."""

from collections.abc import Callable
from typing import Protocol

from torch import nn

from ticket_search.config.trajectory import TrainingSpec
from ticket_search.data.dataset import Dataset
from ticket_search.lottery.level import Level, from_entry
from ticket_search.store.level_store import Checkpoint, Entry, LevelStore
from ticket_search.training.train import LevelInputs, LevelOutputs, TrainingState, train_levels


class Log(Protocol):
    """Where a trajectory says what it does, e.g. ``EventLog.log``."""

    def __call__(self, event: str, **fields: object) -> None:
        """Note one event."""


class Trainer:
    """Trains the levels of one network, through a store.

    Args:
        network: on the device to train on. Its own values are overwritten.
        data: on the same device.
        training: resolved.
        store: where levels are kept, and found.
        log: told of each level that is started, continued, finished or reused.
        was_finished: see `run_trajectory`, as for the rest.
        name: who trains.
        checkpoint_seconds: between two checkpoints.
    """

    def __init__(
        self,
        network: nn.Module,
        data: Dataset,
        training: TrainingSpec,
        store: LevelStore,
        log: Log,
        *,
        was_finished: Callable[[str], bool | None],
        name: str | None,
        checkpoint_seconds: float | None,
    ) -> None:
        self.name = name
        self._network = network
        self._data = data
        self._training = training
        self._store = store
        self._log = log
        self._was_finished = was_finished
        self._checkpoint_seconds = checkpoint_seconds

    def found_or_trained(self, number: int, key: str, train: Callable[[], Entry], **said: object) -> Level:
        """The level of a key.

        Args:
            number: of the level.
            key: its level key.
            train: makes its entry, where the store has none.
            said: what else the log is told of it.
        """

        def train_and_log() -> Entry:
            self._log("level_started", level_key=key, level=number, **said)
            return train()

        def finished() -> None:
            self._log("level_finished", level_key=key, level=number, **said)
            self._store.checkpoint(key).remove()

        entry, found = self._store.get_or_compute(key, train_and_log, saved=finished)
        reused = found and (self.name is None or entry.record.get("trainer") != self.name)
        if found and not reused:
            # Trained for this trajectory by a process that may have died before it said so.
            if self._was_finished(key) is False:
                self._log("level_finished", level_key=key, level=number, **said)
            self._store.tidy(key)
        if found:
            self._log("level_reused", level_key=key, level=number, **said)
        return from_entry(entry, key, reused=reused)

    def train(self, inputs: LevelInputs, key: str) -> LevelOutputs:
        """Train from a start, going on from the checkpoint of the key, if there is one."""
        checkpoints = None
        if self._checkpoint_seconds is not None:
            checkpoints = _Checkpoints(self._store.checkpoint(key), self._checkpoint_seconds, key, self._log)
        (outputs,) = train_levels([inputs], self._network, self._data, self._training, [checkpoints])
        return outputs


class _Checkpoints:
    """A level's checkpoints, in the store."""

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
