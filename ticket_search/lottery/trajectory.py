"""Iterative magnitude pruning: Frankle & Carbin (2019), section 2; with rewinding: Frankle et al. (2019).

    1. Initialize a network randomly and train it; this is level 0.
    2. Prune a fraction of the surviving weights, those of smallest magnitude. The result is a mask.
    3. Rewind the survivors to their values after k iterations of level 0 (k = 0: the initialization). The result is
       a ticket.
    4. Train the ticket from iteration k on to obtain the next level. Train its controls, if any. Repeat from step 2.

A level is a pure function of its inputs and is stored under a hash of these inputs, so a restarted trajectory trains
only the levels that are not in the store yet.
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
    """Run one trajectory, level by level, as a generator that requests training runs; see `steps`.

    Args:
        levels: trains and prunes the trajectory's levels.
        rewind_iterations: see `run_trajectory`.

    Raises:
        Diverged: a level's loss stopped being finite; the levels before it have been yielded.
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
        spec: the trajectory's specification.
        task: the specification's task, on the training device; see `tasks.registry.load_task`.
        store: where levels are looked up and saved.
        executor: creates an executor from its name.
        rewind_iterations: further iterations after which to store level 0's weights, for other trajectories that share
            level 0.
        log: receives ``level_started``, ``level_continued``, ``level_finished`` and ``level_reused``.
        owner_finished: returns whether ``level_finished`` was logged for the given level key, or None if the log does
            not mention the key.
        owner: identifies the run and the trajectory. Levels in the store with the same owner do not count as reused;
            if `owner` is None, every level found in the store counts as reused.
        checkpoint_seconds: the number of seconds between two checkpoints of a level; None disables checkpoints.

    Raises:
        SpecError: the specification does not fit the data.
        Diverged: a level's loss stopped being finite; the levels before it have been yielded.
    """
    levels = TrajectoryLevels(
        spec, task, store, log, owner_finished=owner_finished, owner=owner, checkpoint_seconds=checkpoint_seconds
    )
    yield from run_alone(trajectory_steps(levels, rewind_iterations), executor)


def _is_worth_training(mask: Mask, parent: Mask, pruning: PruningSpec) -> bool:
    """Return whether the settings prescribe the mask, or the mask is dense enough and sparser than the parent's."""
    if pruning.target_densities is not None or pruning.ticket is not None:
        return True
    dense_enough = density(mask) >= pruning.min_density
    return dense_enough and kept_weights(mask) < kept_weights(parent)
