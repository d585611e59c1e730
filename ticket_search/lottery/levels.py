"""The levels, controls and copies of one trajectory, each loaded from the store or trained and saved there."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace

import torch

from ticket_search.config.identity import control_key, derive_seed, rewind_key
from ticket_search.config.pruning import Control
from ticket_search.config.trajectory import TrajectorySpec
from ticket_search.errors import Diverged
from ticket_search.lottery.context import Context
from ticket_search.lottery.early_bird import EarlyBird, MaskDistance
from ticket_search.lottery.level import ControlLevel, Level, to_entry
from ticket_search.lottery.pruner import Pruner
from ticket_search.lottery.starts import Starts, weights_entry
from ticket_search.lottery.steps import Steps
from ticket_search.lottery.trainer import Log, Trainer, no_log
from ticket_search.pruning.masks import Mask, shuffled
from ticket_search.store.level_store import Entry, LevelStore
from ticket_search.tasks.task import Task
from ticket_search.training.outcome import LevelOutputs
from ticket_search.training.provenance import trained_with
from ticket_search.training.request import LevelInputs


class TrajectoryLevels:
    """Trains and prunes the levels of one trajectory.

    Args:
        spec: the trajectory's specification.
        task: the specification's task, on the training device.
        store: where levels are looked up and saved.
        log: receives an event when a level is started, resumed, finished or reused.
        owner_finished: see `run_trajectory`.
        owner: see `run_trajectory`.
        checkpoint_seconds: see `run_trajectory`.

    Raises:
        SpecError: the specification does not fit the data.
    """

    def __init__(
        self,
        spec: TrajectorySpec,
        task: Task,
        store: LevelStore,
        log: Log = no_log,
        *,
        owner_finished: Callable[[str], bool | None] = lambda level_key: None,
        owner: str | None = None,
        checkpoint_seconds: float | None = None,
    ) -> None:
        self.spec = spec
        self.context = Context(spec, task)
        self._trainer = Trainer(
            self.context,
            store,
            log,
            owner_finished=owner_finished,
            owner=owner,
            checkpoint_seconds=checkpoint_seconds,
        )
        self.starts = Starts(self.context, self._trainer)
        self._pruner = Pruner(self.context, self.starts)

    def train_dense(self, keep: Collection[int]) -> Steps[Level]:
        """Train level 0, and store its weights after each of the iterations in `keep`.

        Early-bird may end level 0 early; the dense network trained for the full schedule is then one of its controls.
        """
        early = self.context.pruning.early_bird
        if early is None:
            return _checked((yield from self._train_dense(keep, self.context.dense_key, None)))
        dense = yield from self._train_dense(keep, self.context.dense_key, None, control="dense")
        mask = self.context.whole_mask()
        watch = EarlyBird(early, lambda weights: self._pruner.mask_of_values(0, mask, weights))
        level = _checked((yield from self._train_dense((), self.context.first_key, watch)))
        return replace(level, controls=(ControlLevel(kind="dense", draw=0, level=dense),))

    def prune(self, level: Level) -> Steps[Mask]:
        """Return the mask of the level after `level`."""
        return self._pruner.prune(level)

    def train_ticket(self, parent: Level, mask: Mask) -> Steps[Level]:
        """Train the level after `parent`. Surviving weights are rewound or trained further; see `pruning.retrain`."""
        number, key = parent.number + 1, self.context.next_key(parent)

        def compute() -> Steps[Entry]:
            outputs = yield from self._trainer.train((yield from self.starts.after(parent, mask)), key)
            is_pruned_again = not outputs.diverged and self._pruner.leaves_a_mask(number)
            next_mask = (yield from self._pruner.next_mask(number, mask, outputs.weights)) if is_pruned_again else None
            keeps_weights = self.context.pruning.retrain != "weights"
            return self._entry(outputs, number, mask, next_mask=next_mask, keeps_weights=keeps_weights)

        return _checked((yield from self._trainer.level(number, key, compute)))

    def train_control(self, ticket: Level, kind: Control, draw: int) -> Steps[ControlLevel]:
        """Train a control of a level's ticket exactly as the ticket was trained.

        Unlike a level, a control that diverges does not raise an error.
        """
        key = control_key(ticket.key, kind, draw)
        seed = derive_seed(self.context.spec.seed, "control", kind, ticket.number, draw)
        redraws = kind == "random_reinit"
        mask = ticket.mask if redraws else shuffled(ticket.mask, torch.Generator().manual_seed(seed))

        def compute() -> Steps[Entry]:
            # Draw 0 is the trajectory's own initialization, and `reinit_kept: fresh` uses draw 1; controls start at 2.
            inputs = yield from (self.starts.redrawn(mask, 2 + draw) if redraws else self.starts.rewound(mask))
            return self._entry((yield from self._trainer.train(inputs, key)), ticket.number, mask)

        level = yield from self._trainer.level(ticket.number, key, compute, control=kind, draw=draw)
        return ControlLevel(kind=kind, draw=draw, level=level)

    def train_copy(self, number: int, mask: Mask, copy: int, start: Callable[[], Steps[LevelInputs]]) -> Steps[Level]:
        """Train level `number` again with another data order but otherwise the same inputs, and keep its weights."""
        key, seed = self.context.copy_key(number, copy), derive_seed(self.context.spec.seed, "copy", copy)

        def compute() -> Steps[Entry]:
            inputs = replace((yield from start()), seed=seed)
            return self._entry((yield from self._trainer.train(inputs, key)), number, mask, keeps_weights=True)

        return (yield from self._trainer.level(number, key, compute, copy=copy))

    def _train_dense(self, keep: Collection[int], key: str, watch: EarlyBird | None, **fields: object) -> Steps[Level]:
        context, store = self.context, self._trainer.store
        kept = tuple(sorted(k for k in keep if k < int(context.spec.training.iterations)))

        def compute() -> Steps[Entry]:
            inputs = LevelInputs(weights=context.initial, mask={}, seed=context.spec.seed, keep=kept, watch=watch)
            outputs = yield from self._trainer.train(inputs, key)
            for iteration, weights in outputs.kept.items():
                store.save(rewind_key(context.dense_key, iteration), weights_entry(weights, iteration))
            distances = watch.distances if watch else ()
            return self._entry(outputs, 0, context.whole_mask(), keeps_weights=True, mask_distances=distances)

        return (yield from self._trainer.level(0, key, compute, **fields))

    def _entry(
        self,
        outputs: LevelOutputs,
        number: int,
        mask: Mask,
        *,
        next_mask: Mask | None = None,
        keeps_weights: bool = False,
        mask_distances: Iterable[MaskDistance] = (),
    ) -> Entry:
        return to_entry(
            outputs,
            number=number,
            mask=mask,
            next_mask=next_mask,
            final_weights=outputs.weights if keeps_weights else {},
            owner=self._trainer.owner,
            mask_distances=mask_distances,
            trained_with=trained_with(self.context.task.device),
        )


def _checked(level: Level) -> Level:
    if level.diverged:
        raise Diverged(level.number, level.curve[-1].iteration)
    return level
