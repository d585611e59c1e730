"""The steps of a trajectory, each answered from the store where the store knows the answer."""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from ticket_search.data.dataset import Dataset
from ticket_search.errors import Diverged, StorageError
from ticket_search.lottery.level import ControlLevel, Level, from_entry, to_entry
from ticket_search.lottery.ticket import Ticket
from ticket_search.models import aliases, build, network_digest, prunable
from ticket_search.pruning.criteria import COMPARE_WITH_INITIAL, CRITERIA
from ticket_search.pruning.masks import Mask, apply_mask, full_mask, shuffled
from ticket_search.pruning.strategies import STRATEGIES, Amount, Group, in_rounds, prune
from ticket_search.spec.identity import control_key, dense_key, derive_seed, pruned_key, rewind_key
from ticket_search.spec.trajectory import Control, Criterion, TrajectorySpec
from ticket_search.store.level_store import Checkpoint, Entry, LevelStore
from ticket_search.training import saliency
from ticket_search.training.train import LevelInputs, LevelOutputs, TrainingState, train_levels

#: On average, for the criteria that look at a batch; Wang et al. (2020) take ten of each.
_IMAGES_PER_CLASS = 10


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
        self._first_name = aliases(self._network)
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
        """The ticket: kept weights, and all that is never pruned, as they were after `rewind_iteration` iterations.

        Or as `reinit_kept` and `reinit_pruned` say.
        """
        return self._placed(mask, self._kept_start())

    def _kept_start(self) -> dict[str, Tensor]:
        """What weights start from where they are kept."""
        match self._pruning.reinit_kept:
            case "rewind":
                return dict(self._rewind_weights())
            case "fresh":
                return self._draw(1)
            case "sign":
                names = prunable(self._network)
                return {
                    name: _signed(value, self._initial[name].cpu()) if name in names else value
                    for name, value in self._rewind_weights().items()
                }

    def _placed(self, mask: Mask, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values where the mask keeps weights, and what pruned ones are held at where it does not."""
        if self._pruning.reinit_pruned == "zero":
            return self._tied(apply_mask(mask, kept))
        held = self._rewind_weights()
        return self._tied({n: torch.where(mask[n], w, held[n]) if n in mask else w for n, w in kept.items()})

    def _tied(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A tied weight stands in the state under each of its names, and the last one loaded counts."""
        return {name: weights[self._first_name.get(name, name)] for name in weights}

    def _draw(self, number: int) -> dict[str, Tensor]:
        """Another initialization of the network; 0 is the run's own."""
        network = build(self._spec.model, self._data.image_shape, self._data.classes, self._spec.seed, draw=number)
        return dict(network.state_dict())

    def _rewind_weights(self) -> Mapping[str, Tensor]:
        """Every parameter and buffer after `rewind_iteration` iterations of level 0, on the CPU."""
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
        return entry.tensors

    def _start(self, parent: Level, mask: Mask) -> LevelInputs:
        """Where the level after `parent` starts: weights, schedule and data."""
        iterations, k = int(self._spec.training.iterations), self._pruning.rewind_iteration
        seed, retrain = self._spec.seed, self._pruning.retrain
        if retrain == "weights":
            return LevelInputs(weights=self.rewind(mask), mask=mask, seed=seed, start=k)
        weights = self._tied(apply_mask(mask, parent.final_weights))
        shift = (parent.number + 1) * (iterations - k) if retrain == "finetune" else 0
        return LevelInputs(weights=weights, mask=mask, seed=seed, start=k, shift=shift)

    def train_ticket(self, parent: Level, mask: Mask) -> Level:
        """The level after `parent`: its survivors rewound, or not, and trained again."""
        number = parent.number + 1

        def train() -> Entry:
            outputs = self._train(self._start(parent, mask), key)
            goes_on = not outputs.diverged and number != self._pruning.last_target
            return to_entry(
                outputs,
                number=number,
                mask=mask,
                next_mask=self._next_mask(number, mask, outputs.weights) if goes_on else None,
                final_weights={} if self._pruning.retrain == "weights" else outputs.weights,
                trainer=self._trainer,
            )

        key = pruned_key(parent.key, self._pruning, number)
        return self._level(number, key, train)

    def ticket(self, number: int, name: str, figures: Mapping[str, Any]) -> Ticket:
        """The ticket that level `number` trained, from the store.

        Raises:
            StorageError: a level that it needs is not there any more.
        """
        level = self._stored(number)
        rewinds = self._pruning.retrain == "weights"
        start = self._start(level if rewinds else self._stored(number - 1), level.mask)
        return Ticket(
            name=name,
            level_key=level.key,
            spec=self._spec,
            image_shape=self._data.image_shape,
            classes=self._data.classes,
            start=start.start,
            shift=start.shift,
            mask=level.mask,
            weights=dict(start.weights),
            figures=figures,
        )

    def level_key(self, number: int) -> str:
        """The key of a level of the trajectory, trained or not."""
        key = self._dense_key
        for level in range(1, number + 1):
            key = pruned_key(key, self._pruning, level)
        return key

    def _stored(self, number: int) -> Level:
        key = self.level_key(number)
        entry = self._store.load(key)
        if entry is None:
            raise StorageError(
                f"level {number} ({key}) is not in the store any more; a new search would train it again"
            )
        return from_entry(entry, key, reused=True)

    def train_control(self, ticket: Level, kind: Control, draw: int) -> ControlLevel:
        """A control of the ticket of a level, trained as that was; one that diverges is no error."""
        key = control_key(ticket.key, kind, draw)
        seed = derive_seed(self._spec.seed, "control", kind, ticket.number, draw)
        mask = ticket.mask if kind == "random_reinit" else shuffled(ticket.mask, torch.Generator().manual_seed(seed))

        def train() -> Entry:
            # Draw 1 is what `reinit_kept: fresh` starts from.
            weights = self._placed(mask, self._draw(2 + draw)) if kind == "random_reinit" else self.rewind(mask)
            start = self._pruning.rewind_iteration
            outputs = self._train(LevelInputs(weights=weights, mask=mask, seed=self._spec.seed, start=start), key)
            return to_entry(
                outputs, number=ticket.number, mask=mask, next_mask=None, final_weights={}, trainer=self._trainer
            )

        level = self._found_or_trained(ticket.number, key, train, control=kind, draw=draw)
        return ControlLevel(kind=kind, draw=draw, level=level)

    def _level(self, number: int, key: str, train: Callable[[], Entry]) -> Level:
        level = self._found_or_trained(number, key, train)
        if level.diverged:
            raise Diverged(number, level.curve[-1].iteration)
        return level

    def _found_or_trained(self, number: int, key: str, train: Callable[[], Entry], **said: object) -> Level:
        """The level of a key. `said` is what else the log is told of it."""

        def train_and_log() -> Entry:
            self._log("level_started", level_key=key, level=number, **said)
            return train()

        def finished() -> None:
            self._log("level_finished", level_key=key, level=number, **said)
            self._store.checkpoint(key).remove()

        entry, found = self._store.get_or_compute(key, train_and_log, saved=finished)
        reused = found and (self._trainer is None or entry.record.get("trainer") != self._trainer)
        if found and not reused:
            # Trained for this trajectory by a process that may have died before it said so.
            if self._was_finished(key) is False:
                self._log("level_finished", level_key=key, level=number, **said)
            self._store.tidy(key)
        if found:
            self._log("level_reused", level_key=key, level=number, **said)
        return from_entry(entry, key, reused=reused)

    def _train(self, inputs: LevelInputs, key: str) -> LevelOutputs:
        checkpoints = None
        if self._checkpoint_seconds is not None:
            checkpoints = _Checkpoints(self._store.checkpoint(key), self._checkpoint_seconds, key, self._log)
        (outputs,) = train_levels([inputs], self._network, self._data, self._spec.training, [checkpoints])
        return outputs

    def _next_mask(self, number: int, mask: Mask, weights: Mapping[str, Tensor]) -> Mask:
        # On the CPU, whatever the training ran on: equal weights then give equal masks everywhere.
        final = {name: weights[name].cpu() for name in mask}
        pruning = self._pruning
        targets = pruning.target_densities
        amount = Amount(
            rate=pruning.pruning_rate,
            target=targets[number] if targets else None,
            conv_layer_rate=pruning.conv_layer_rate,
            output_layer_rate=pruning.output_layer_rate,
        )
        groups = STRATEGIES[pruning.strategy](mask, amount)
        seed = derive_seed(self._spec.seed, "prune", number)
        if pruning.criterion in saliency.CRITERIA:
            return self._prune_by_saliency(mask, groups, pruning.criterion, seed)
        initial: Mapping[str, Tensor] = {}
        if pruning.criterion in COMPARE_WITH_INITIAL:
            # What was trained started there; level 0, whatever the survivors are to start from, from W_k.
            initial = self.rewind(mask) if number > 0 and pruning.retrain == "weights" else self._rewind_weights()
        scores = CRITERIA[pruning.criterion](initial, final, torch.Generator().manual_seed(seed))
        return prune(mask, scores, groups)

    def _prune_by_saliency(self, mask: Mask, groups: list[Group], criterion: Criterion, seed: int) -> Mask:
        weights = self._tied(self._kept_start())
        images, labels = self._sample()
        for step in in_rounds(mask, groups, saliency.ROUNDS[criterion]):
            masked = self._tied(apply_mask(mask, weights))
            scores = saliency.saliency(criterion, self._network, masked, mask, images, labels, seed)
            mask = prune(mask, scores, step)
        return mask

    def _sample(self) -> tuple[Tensor, Tensor]:
        """The training batches from the rewind iteration on, until there are ten images a class on average."""
        stream = self._data.stream(self._spec.seed, self._spec.training.batch_size)
        count = math.ceil(_IMAGES_PER_CLASS * self._data.classes / self._spec.training.batch_size)
        batches = [stream.batch(self._pruning.rewind_iteration + i) for i in range(count)]
        return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


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


def _signed(weights: Tensor, initial: Tensor) -> Tensor:
    """The sign of each weight times the standard deviation of its layer's initialization."""
    return weights.sign() * initial.std(correction=0)


def _weights_entry(weights: Mapping[str, Tensor], iteration: int) -> Entry:
    return Entry(record={"iteration": iteration}, tensors={n: w.cpu() for n, w in weights.items()})
