"""Iterative magnitude pruning: Frankle & Carbin (2019), section 2; with rewinding: Frankle et al. (2019).

    1. Randomly initialise a network; train it: level 0.
    2. Prune a fraction of the smallest surviving weights: a mask.
    3. Rewind the survivors to their values after k iterations of level 0 (k = 0: the initialisation): a ticket.
    4. Train the ticket from iteration k on: the next level; and its controls, if any. Go to 2.

A level is a pure function of its inputs and is stored under their hash, so a restart walks the store and trains only
the levels that are not in it.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

from ticket_search.config.pruning import PruningSpec
from ticket_search.config.trajectory import TrajectorySpec
from ticket_search.lottery.lanes import run_alone
from ticket_search.lottery.level import Level
from ticket_search.lottery.levels import TrajectoryLevels
from ticket_search.lottery.steps import Steps
from ticket_search.lottery.trainer import Log, no_log
from ticket_search.pruning.masks import Mask, density, kept_weights
from ticket_search.store.level_store import LevelStore
from ticket_search.tasks.task import Task
from ticket_search.training.executors.executor import Executor
from ticket_search.training.executors.registry import executor_for


def trajectory_steps(levels: TrajectoryLevels, rewind_iterations: Collection[int] = ()) -> Steps[None]:
    """One trajectory, level by level, as a generator that requests its trainings; see `steps`.

    Args:
        levels: of the trajectory.
        rewind_iterations: see `run_trajectory`.

    Raises:
        Diverged: a level's loss stopped being finite; the levels before it were yielded.
    """
    spec = levels.spec
    level = yield from levels.train_dense({*rewind_iterations, spec.pruning.rewind_iteration})
    yield level
    while spec.pruning.last_level is None or level.number < spec.pruning.last_level:
        mask = yield from levels.prune(level)
        if not _is_worth_training(mask, level.mask, spec.pruning):
            return
        level = yield from levels.train_ticket(level, mask)
        controls = []
        for kind, draw in spec.controls.of(level.number, spec.pruning.last_level):
            controls.append((yield from levels.train_control(level, kind, draw)))
        yield replace(level, controls=tuple(controls))


def run_trajectory(
    spec: TrajectorySpec,
    task: Task,
    store: LevelStore,
    *,
    executor: Callable[[str], Executor] = executor_for,
    rewind_iterations: Collection[int] = (),
    log: Log = no_log,
    owner_finished: Callable[[str], bool | None] = lambda level_key: None,
    owner: str | None = None,
    checkpoint_seconds: float | None = None,
) -> Iterator[Level]:
    """Yield the levels of one trajectory as they finish, each read from the store or trained.

    Args:
        spec: what to run.
        task: of the specification, on the device to train on; see `tasks.registry.load_task`.
        store: where levels are saved and looked up.
        executor: creates the executor with a given name.
        rewind_iterations: other iterations that trajectories sharing level 0 may rewind to; their weights are stored.
        log: receives ``level_started``, ``level_continued``, ``level_finished`` and ``level_reused``.
        owner_finished: whether ``level_finished`` has been logged for a level key; None if the log does not mention it.
        owner: names the trajectory of a run. A level in the store with the same owner is not counted as reused;
            with None, every level in the store is.
        checkpoint_seconds: seconds between two checkpoints of a level's training; None disables checkpoints.

    Raises:
        SpecError: the specification does not fit the data.
        Diverged: a level's loss stopped being finite; the levels before it were yielded.
    """
    levels = TrajectoryLevels(
        spec, task, store, log, owner_finished=owner_finished, owner=owner, checkpoint_seconds=checkpoint_seconds
    )
    yield from run_alone(trajectory_steps(levels, rewind_iterations), executor)


def _is_worth_training(mask: Mask, parent: Mask, pruning: PruningSpec) -> bool:
    """Whether the mask was given by the settings, or is dense enough and sparser than its parent."""
    if pruning.target_densities is not None or pruning.ticket is not None:
        return True
    dense_enough = density(mask) >= pruning.min_density
    return dense_enough and kept_weights(mask) < kept_weights(parent)
