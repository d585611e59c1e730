"""The steps of a trajectory, each answered from the store where the store knows the answer."""

from collections.abc import Callable, Collection, Mapping
from typing import Protocol

import torch
from torch import Tensor

from ticket_search.data.dataset import Dataset
from ticket_search.errors import Diverged
from ticket_search.lottery.level import Level, from_entry, to_entry
from ticket_search.models import build, network_digest, prunable
from ticket_search.pruning.criteria import CRITERIA
from ticket_search.pruning.masks import Mask, apply_mask, full_mask
from ticket_search.pruning.strategies import STRATEGIES
from ticket_search.spec.identity import dense_key, derive_seed, pruned_key, rewind_key
from ticket_search.spec.trajectory import TrajectorySpec
from ticket_search.store.level_store import Checkpoint, Entry, LevelStore
from ticket_search.training.train import LevelInputs, LevelOutputs, TrainingState, train_levels


class Log(Protocol):
    """Where a trajectory says what it does, e.g. ``EventLog.log``."""

    def __call__(self, event: str, **fields: object) -> None:
        """Note one event."""


class Workbench:
    """The network, the data and the store that one trajectory works with.

    Args:
        spec: what to run.
        data: on the device to train on.
        store: where levels are kept, and found.
        log: told of each level that is started, finished or reused.
        was_finished: see `run_trajectory`, as for the rest.
        trainer: who trains.
        checkpoint_seconds: between two checkpoints.

    Raises:
        SpecError: the specification does not fit the data.
    """

    def __init__(
        self,
        spec: TrajectorySpec,
        data: Dataset,
        store: LevelStore,
        log: Log,
        *,
        was_finished: Callable[[str], bool | None] = lambda level_key: None,
        trainer: str | None = None,
        checkpoint_seconds: float | None = None,
    ) -> None:
        self._spec = _resolve(spec, data)
        self._data = data
        self._store = store
        self._log = log
        self._was_finished = was_finished
        self._trainer = trainer
        self._checkpoint_seconds = checkpoint_seconds
        self._device = data.train.labels.device
        self._network = build(spec.model, data.image_shape, data.classes, spec.seed).to(self._device)
        self._initial = {name: value.clone() for name, value in self._network.state_dict().items()}
        self._dense_key = dense_key(self._spec, data=data.fingerprint, network=network_digest(spec.model))
        self._pruning = self._spec.trajectory

    def train_dense(self, keep: Collection[int]) -> Level:
        """Level 0. The weights after each of the iterations in `keep` go into the store beside it."""
        mask = full_mask({name: value.cpu() for name, value in self._initial.items()}, prunable(self._network))
        kept = tuple(sorted(k for k in keep if k < int(self._spec.training.iterations)))

        def train() -> Entry:
            inputs = LevelInputs(weights=self._initial, mask={}, seed=self._spec.seed, keep=kept)
            outputs = self._train(inputs, self._dense_key)
            for iteration, weights in outputs.kept.items():
                self._store.save(rewind_key(self._dense_key, iteration), _weights_entry(weights, iteration))
            return to_entry(
                outputs, number=0, mask=mask, next_mask=None, final_weights=outputs.weights, trainer=self._trainer
            )

        return self._level(0, self._dense_key, train)

    def prune(self, level: Level) -> Mask:
        """The mask that a level's training leaves, by the trajectory's criterion and strategy."""
        if level.next_mask is not None:
            return level.next_mask
        return self._next_mask(level.number, level.mask, level.final_weights)

    def rewind(self, mask: Mask) -> dict[str, Tensor]:
        """The ticket: kept weights, and all that is never pruned, as they were after `rewind_iteration` iterations."""
        iteration = self._pruning.rewind_iteration

        def train_again() -> Entry:
            """Level 0 was trained when nobody asked for these weights: train its beginning once more."""
            if iteration == 0:
                return _weights_entry(self._initial, 0)
            start = LevelInputs(weights=self._initial, mask={}, seed=self._spec.seed, stop=iteration)
            return _weights_entry(self._train(start, key).weights, iteration)

        key = rewind_key(self._dense_key, iteration)
        done = self._store.checkpoint(key).remove
        entry, _ = self._store.get_or_compute(key, train_again, saved=done)
        return apply_mask(mask, entry.tensors)

    def train_ticket(self, parent: Level, mask: Mask) -> Level:
        """The level after `parent`: its survivors rewound, and trained from the rewind iteration on."""
        number = parent.number + 1

        def train() -> Entry:
            start = LevelInputs(
                weights=self.rewind(mask), mask=mask, seed=self._spec.seed, start=self._pruning.rewind_iteration
            )
            outputs = self._train(start, key)
            next_mask = None if outputs.diverged else self._next_mask(number, mask, outputs.weights)
            return to_entry(
                outputs, number=number, mask=mask, next_mask=next_mask, final_weights={}, trainer=self._trainer
            )

        key = pruned_key(parent.key, self._pruning)
        return self._level(number, key, train)

    def _level(self, number: int, key: str, train: Callable[[], Entry]) -> Level:
        def train_and_log() -> Entry:
            self._log("level_started", level_key=key, level=number)
            return train()

        def finished() -> None:
            self._log("level_finished", level_key=key, level=number)
            self._store.checkpoint(key).remove()

        entry, found = self._store.get_or_compute(key, train_and_log, saved=finished)
        reused = found and (self._trainer is None or entry.record.get("trainer") != self._trainer)
        if found and not reused:
            # Trained for this trajectory by a process that may have died before it said so.
            if self._was_finished(key) is False:
                self._log("level_finished", level_key=key, level=number)
            self._store.tidy(key)
        if found:
            self._log("level_reused", level_key=key, level=number)
        level = from_entry(entry, key, reused=reused)
        if level.diverged:
            raise Diverged(number, level.curve[-1].iteration)
        return level

    def _train(self, inputs: LevelInputs, key: str) -> LevelOutputs:
        checkpoints = None
        if self._checkpoint_seconds is not None:
            checkpoints = _Checkpoints(self._store.checkpoint(key), self._checkpoint_seconds, key, self._log)
        (outputs,) = train_levels([inputs], self._network, self._data, self._spec.training, [checkpoints])
        return outputs

    def _next_mask(self, number: int, mask: Mask, weights: Mapping[str, Tensor]) -> Mask:
        # On the CPU, whatever the training ran on: equal weights then give equal masks everywhere.
        final = {name: weights[name].cpu() for name in mask}
        generator = torch.Generator().manual_seed(derive_seed(self._spec.seed, "prune", number))
        scores = CRITERIA[self._pruning.criterion](final, generator)
        return STRATEGIES[self._pruning.strategy](
            mask, scores, self._pruning.pruning_rate, self._pruning.output_layer_rate
        )


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


def _resolve(spec: TrajectorySpec, data: Dataset) -> TrajectorySpec:
    """With epochs as iterations, and the constants of normalisation that `null` stood for."""
    resolved = spec.resolve(len(data.train.labels))
    return resolved.model_copy(update={"dataset": spec.dataset.model_copy(update={"normalize": data.normalize})})


def _weights_entry(weights: Mapping[str, Tensor], iteration: int) -> Entry:
    return Entry(record={"iteration": iteration}, tensors={n: w.cpu() for n, w in weights.items()})
