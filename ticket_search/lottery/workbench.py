"""The steps of a trajectory, each answered from the store where the store knows the answer."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ticket_search.config.identity import (
    control_key,
    copy_key,
    dense_key,
    derive_seed,
    early_bird_key,
    pruned_key,
    rewind_key,
)
from ticket_search.config.pruning import Control, Criterion
from ticket_search.config.trajectory import TrajectorySpec
from ticket_search.data.dataset import Dataset
from ticket_search.errors import Diverged, StorageError
from ticket_search.lottery.early_bird import EarlyBird
from ticket_search.lottery.level import ControlLevel, Level, from_entry, to_entry
from ticket_search.lottery.stability import ErrorBetween, errors_between, unknown_errors
from ticket_search.lottery.ticket import Ticket, ticket_in_store
from ticket_search.lottery.trainer import Log, Trainer
from ticket_search.models import aliases, build, network_digest, prunable
from ticket_search.pruning.criteria import COMPARE_WITH_INITIAL, CRITERIA
from ticket_search.pruning.masks import Mask, apply_mask, full_mask, shuffled
from ticket_search.pruning.strategies import STRATEGIES, Amount, Group, in_rounds, prune
from ticket_search.store.level_store import Entry, LevelStore
from ticket_search.training import saliency
from ticket_search.training.train import LevelInputs

#: On average, for the criteria that look at a batch; Wang et al. (2020) take ten of each.
_IMAGES_PER_CLASS = 10


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
        self.data = data
        self._store = store
        self._network = build(spec.model, data.image_shape, data.classes, spec.seed).to(data.train.labels.device)
        self._trainer = Trainer(
            self._network,
            data,
            self._spec.training,
            store,
            log,
            was_finished=was_finished,
            name=trainer,
            checkpoint_seconds=checkpoint_seconds,
        )
        self._initial = {name: value.clone() for name, value in self._network.state_dict().items()}
        self._first_name = aliases(self._network)
        self._pruning = self._spec.pruning
        self._dense_key = dense_key(self._spec, data=data.fingerprint, network=network_digest(spec.model))
        early = self._pruning.early_bird
        self._first_key = early_bird_key(self._dense_key, early, self._pruning) if early else self._dense_key

    def train_dense(self, keep: Collection[int]) -> Level:
        """Level 0. The weights after each of the iterations in `keep` go into the store beside it.

        With early-bird it ends early, and the dense network that is trained to its end is a control of it.
        """
        early = self._pruning.early_bird
        if early is None:
            return self._checked(self._train_dense(keep, self._dense_key, None))
        whole = self._train_dense(keep, self._dense_key, None, control="dense")
        mask = self._whole_mask()
        watch = EarlyBird(early, lambda weights: self._next_mask(0, mask, weights))
        level = self._checked(self._train_dense((), self._first_key, watch))
        return replace(level, controls=(ControlLevel(kind="dense", draw=0, level=whole),))

    def _train_dense(self, keep: Collection[int], key: str, watch: EarlyBird | None, **said: object) -> Level:
        mask = self._whole_mask()
        kept = tuple(sorted(k for k in keep if k < int(self._spec.training.iterations)))

        def train() -> Entry:
            inputs = LevelInputs(weights=self._initial, mask={}, seed=self._spec.seed, keep=kept, watch=watch)
            outputs = self._trainer.train(inputs, key)
            for iteration, weights in outputs.kept.items():
                self._store.save(rewind_key(self._dense_key, iteration), _weights_entry(weights, iteration))
            return to_entry(
                outputs,
                number=0,
                mask=mask,
                next_mask=None,
                final_weights=outputs.weights,
                trainer=self._trainer.name,
                mask_distances=watch.distances if watch else (),
            )

        return self._trainer.found_or_trained(0, key, train, **said)

    def _whole_mask(self) -> Mask:
        return full_mask({name: value.cpu() for name, value in self._initial.items()}, prunable(self._network))

    def prune(self, level: Level) -> Mask:
        """The mask that a level's training leaves, by the trajectory's criterion and strategy; or the one given."""
        if self._given is not None:
            return {name: self._given.mask.get(name, kept) for name, kept in level.mask.items()}
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
        if self._given is not None and self._pruning.ticket_weights == "ticket":
            return {name: self._given.weights.get(name, own) for name, own in self._rewind_weights().items()}
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

    @cached_property
    def _given(self) -> Ticket | None:
        """The ticket that was found elsewhere, as far as it fits: a head for other classes is left out.

        Raises:
            SpecError: the store does not hold it, or it is of another network or takes other images.
        """
        if self._pruning.ticket is None:
            return None
        data = self.data
        ticket = ticket_in_store(self._pruning.ticket, self._store.load, self._spec.model, data.image_shape)
        return ticket.cut_to({name: value.shape for name, value in self._initial.items()}, data.classes)

    def _draw(self, number: int) -> dict[str, Tensor]:
        """Another initialization of the network; 0 is the run's own."""
        network = build(self._spec.model, self.data.image_shape, self.data.classes, self._spec.seed, draw=number)
        return dict(network.state_dict())

    def _rewind_weights(self) -> Mapping[str, Tensor]:
        """Every parameter and buffer after `rewind_iteration` iterations of level 0, on the CPU."""
        iteration = self._pruning.rewind_iteration

        def train_again() -> Entry:
            """Level 0 was trained when nobody asked for these weights: train its beginning once more."""
            if iteration == 0:
                return _weights_entry(self._initial, 0)
            start = LevelInputs(weights=self._initial, mask={}, seed=self._spec.seed, stop=iteration)
            return _weights_entry(self._trainer.train(start, key).weights, iteration)

        key = rewind_key(self._dense_key, iteration)
        done = self._store.checkpoint(key).remove
        entry, _ = self._store.get_or_compute(key, train_again, saved=done)
        return entry.tensors

    def _start(self, parent: Level, mask: Mask) -> LevelInputs:
        """Where the level after `parent` starts: weights, schedule and data."""
        iterations, k = int(self._spec.training.iterations), self._pruning.rewind_iteration
        seed, retrain = self._spec.seed, self._pruning.retrain
        if retrain == "weights":
            return self._rewound(mask)
        weights = self._tied(apply_mask(mask, parent.final_weights))
        shift = (parent.number + 1) * (iterations - k) if retrain == "finetune" else 0
        return LevelInputs(weights=weights, mask=mask, seed=seed, start=k, shift=shift)

    def _rewound(self, mask: Mask) -> LevelInputs:
        k = self._pruning.rewind_iteration
        return LevelInputs(weights=self.rewind(mask), mask=mask, seed=self._spec.seed, start=k)

    def train_ticket(self, parent: Level, mask: Mask) -> Level:
        """The level after `parent`: its survivors rewound, or not, and trained again."""
        number = parent.number + 1

        def train() -> Entry:
            outputs = self._trainer.train(self._start(parent, mask), key)
            goes_on = not outputs.diverged and number != self._pruning.last_target and self._given is None
            return to_entry(
                outputs,
                number=number,
                mask=mask,
                next_mask=self._next_mask(number, mask, outputs.weights) if goes_on else None,
                final_weights={} if self._pruning.retrain == "weights" else outputs.weights,
                trainer=self._trainer.name,
            )

        key = pruned_key(parent.key, self._pruning, number)
        return self._checked(self._trainer.found_or_trained(number, key, train))

    def ticket(self, number: int, name: str, figures: Mapping[str, Any]) -> Ticket:
        """The ticket that level `number` trained, from the store.

        Raises:
            StorageError: a level that it needs is not there any more.
        """
        level = self._stored(number)
        start = self._start_of(number, level.mask)
        return Ticket(
            name=name,
            level_key=level.key,
            spec=self._spec,
            image_shape=self.data.image_shape,
            classes=self.data.classes,
            start=start.start,
            shift=start.shift,
            mask=level.mask,
            weights=dict(start.weights),
            figures=figures,
        )

    def _start_of(self, number: int, mask: Mask) -> LevelInputs:
        """Where the level of that number, which the store has, started."""
        if self._pruning.retrain == "weights":
            return self._rewound(mask)
        return self._start(self._stored(number - 1), mask)

    def level_key(self, number: int) -> str:
        """The key of a level of the trajectory, trained or not."""
        key = self._first_key
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
            inputs = LevelInputs(weights=weights, mask=mask, seed=self._spec.seed, start=start)
            return to_entry(
                self._trainer.train(inputs, key),
                number=ticket.number,
                mask=mask,
                next_mask=None,
                final_weights={},
                trainer=self._trainer.name,
            )

        level = self._trainer.found_or_trained(ticket.number, key, train, control=kind, draw=draw)
        return ControlLevel(kind=kind, draw=draw, level=level)

    def train_copy(self, number: int, copy: int) -> Level:
        """The ticket of level `number` trained once more, from the same start under another data order.

        Of level 0 it is the dense network that is trained again, from `rewind_iteration` on.

        Args:
            number: of the level.
            copy: counted from 0; none is the training of the level itself.

        Returns:
            What it came to, with its final weights.

        Raises:
            StorageError: the ticket's level is not in the store any more.
        """
        k, key = self._pruning.rewind_iteration, self.copy_key(number, copy)
        mask = self._stored(number).mask if number > 0 else self._whole_mask()

        def train() -> Entry:
            if number > 0:
                start = self._start_of(number, mask)
            else:
                start = LevelInputs(weights=self._rewind_weights(), mask={}, seed=0, start=k)
            outputs = self._trainer.train(replace(start, seed=derive_seed(self._spec.seed, "copy", copy)), key)
            return to_entry(
                outputs,
                number=number,
                mask=mask,
                next_mask=None,
                final_weights=outputs.weights,
                trainer=self._trainer.name,
            )

        return self._trainer.found_or_trained(number, key, train, copy=copy)

    def of(self, spec: TrajectorySpec) -> "Workbench":
        """A workbench for another trajectory over the same data and store, to ask and not to train."""
        return Workbench(spec, self.data, self._store, lambda event, **fields: None)

    def copy_key(self, number: int, copy: int) -> str:
        """The store's key of what `train_copy` trains."""
        start = self.level_key(number) if number > 0 else rewind_key(self._dense_key, self._pruning.rewind_iteration)
        return copy_key(start, copy)

    def errors_between(self, one: Level, other: Level, points: int) -> list[ErrorBetween]:
        """The errors on the straight line between the final weights of two trainings, both ends included.

        Of a training that diverged nothing is known: the errors are nan.
        """
        if one.diverged or other.diverged:
            return unknown_errors(points)
        network, data, precision = self._network, self.data, self._spec.training.precision
        return errors_between(one.final_weights, other.final_weights, points, network, data, precision)

    def _checked(self, level: Level) -> Level:
        if level.diverged:
            raise Diverged(level.number, level.curve[-1].iteration)
        return level

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
        stream = self.data.stream(self._spec.seed, self._spec.training.batch_size)
        count = math.ceil(_IMAGES_PER_CLASS * self.data.classes / self._spec.training.batch_size)
        batches = [stream.batch(self._pruning.rewind_iteration + i) for i in range(count)]
        return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def _resolve(spec: TrajectorySpec, data: Dataset) -> TrajectorySpec:
    """With epochs as iterations, and the constants of normalisation that `null` stood for."""
    resolved = spec.resolve(len(data.train))
    return resolved.model_copy(update={"dataset": spec.dataset.model_copy(update={"normalize": data.normalize})})


def _signed(weights: Tensor, initial: Tensor) -> Tensor:
    """The sign of each weight times the standard deviation of its layer's initialization."""
    return weights.sign() * initial.std(correction=0)


def _weights_entry(weights: Mapping[str, Tensor], iteration: int) -> Entry:
    return Entry(record={"iteration": iteration}, tensors={n: w.cpu() for n, w in weights.items()})
