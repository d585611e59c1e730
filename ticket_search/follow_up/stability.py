"""Trains copies of a ticket and of its dense network in parallel, and measures the error barriers between copies."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from ticket_search.analysis.stability import plot, stability_table
from ticket_search.config.base import validate
from ticket_search.config.search import SearchSpec
from ticket_search.config.trajectory import TrajectorySpec
from ticket_search.engines.engine import open_engine
from ticket_search.engines.job import Job, make_job
from ticket_search.engines.place import Place
from ticket_search.errors import RunDirectoryError
from ticket_search.follow_up.export import find_ticket, open_finished, read_data
from ticket_search.runs.directory import COPIES, RUN_FILE, locked, read_run, read_spec
from ticket_search.runs.places import store_folder
from ticket_search.runs.store_use import register
from ticket_search.storage.folder import Folder

if TYPE_CHECKING:
    from ticket_search.lottery.finished import FinishedTrajectory
    from ticket_search.tasks.task import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Arm:
    """The starting point that several copies share: a ticket, or the dense network at a rewind iteration."""

    trajectory: TrajectorySpec
    level: int
    density: float

    @property
    def columns(self) -> dict[str, Any]:
        """The arm's values in the table of errors, by column."""
        iteration = self.trajectory.pruning.rewind_iteration
        return {"arm": "ticket" if self.level else "dense", "rewind_iteration": iteration, "density": self.density}


def lines_between_copies(
    run_dir: Folder,
    ticket: str,
    *,
    copies: int,
    points: int,
    rewinds: Sequence[int] = (),
    data_dir: str | None = None,
    engine: str = "ray",
    address: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> pd.DataFrame:
    """Measure the errors on the lines between copies of a ticket, and between copies of its dense network.

    Copies start from the same weights and differ in data order, augmentation and dropout. They are kept in the level
    store, so that a later call reuses them, and their keys are listed in the run directory, so that `store_use` does
    not remove them.

    Args:
        run_dir: the run directory of the search.
        ticket: the name of the ticket, ``<trajectory_id>/<level>``.
        copies: the number of copies from each starting point, at least 2.
        points: the number of points on each line, including both ends.
        rewinds: the iterations from which copies of the dense network are trained; if empty, the rewind
            iterations of the search and of the ticket.
        data_dir: the folder of the data sets; None means the folder that the search used.
        engine: where copies are trained: ``inline``, ``processes`` or ``ray``.
        address: the address of a Ray cluster; see `launch.run.run_search`.
        say: receives lines that report progress.

    Returns:
        A row for each point: ``ticket``, ``arm`` (``ticket`` or ``dense``), ``rewind_iteration``, ``density``,
        ``first`` and ``second`` (numbers of the copies), ``position`` (0 at the first, 1 at the second), ``val_error``
        and ``test_error`` (the metric as an error, see `Task.error`; nan if a copy diverged).

    Raises:
        SpecError: the search has no such ticket, the data have changed, or a rewind iteration is not before the end of
            training.
        RunDirectoryError: another process is using the run directory, or the file that identifies the run is missing.
        TicketSearchError: a training run failed.
    """
    spec = read_spec(run_dir)
    trajectory, level, figures = find_ticket(run_dir, ticket)
    source = read_data(run_dir, trajectory, data_dir)
    finished = open_finished(run_dir, trajectory, level, str(figures["level_key"]), source)
    iterations = sorted(set(rewinds) or {*spec.rewind_iterations, trajectory.pruning.rewind_iteration})
    dense = [_Arm(trajectory=_dense_from(k, trajectory, finished.task), level=0, density=1.0) for k in iterations]
    arms = [_Arm(trajectory=trajectory, level=level, density=float(str(figures["density"]))), *dense]
    keys = [finished.of(arm.trajectory).copy_key(arm.level, copy) for arm in arms for copy in range(copies)]
    pairs = list(itertools.combinations(range(copies), 2))
    # The lock keeps `store --keep-best` from removing copies in use, and another call from writing the same table.
    with locked(run_dir, say), open_engine(engine, address, room=source.size) as opened:
        (run_dir / COPIES).write(f"{ticket.replace('/', '-')}.json", json.dumps(keys).encode())
        for line in opened.plan(spec):
            say(line)
        place = _registered(run_dir, spec)
        opened.check_storage(place)  # a node without access would save copies to a local folder
        data = opened.share({trajectory.dataset.source: source})
        jobs = [make_job(spec, 0, arm.trajectory, run_dir, place.run_id, data) for arm in arms]
        starts = [(job, arm.level) for job, arm in zip(jobs, arms, strict=True)]
        say(f"{len(arms) * copies} training runs: {copies} copies each of the ticket and {len(dense)} dense networks")
        opened.call(train_copy, [(*start, copy) for start in starts for copy in range(copies)], spec, "trained", say)
        lines = [(*start, *pair, points) for start in starts for pair in pairs]
        errors = opened.call(errors_between, lines, spec, "measured", say)
    heads = [{"ticket": ticket} | arm.columns | {"first": a, "second": b} for arm in arms for a, b in pairs]
    return pd.DataFrame([head | point for head, line in zip(heads, errors, strict=True) for point in line])


def _registered(run_dir: Folder, spec: SearchSpec) -> Place:
    """Write the run's note to the level store, because a moved run has none, and return the run's locations.

    Raises:
        RunDirectoryError: the file that identifies the run is missing.
    """
    run, store = read_run(run_dir), store_folder(spec, run_dir)
    if run is None:
        raise RunDirectoryError(f"{run_dir.place(RUN_FILE)!r} is missing; `ticket-search resume` writes it again")
    register(store, run_dir, run, spec)
    return Place(run_dir=run_dir, store=store, run_id=run.run_id)


def train_copy(job: Job, level: int, copy: int) -> None:
    """Train a copy, unless the store already has it. Workers call this function."""
    _finished(job).train_copy(level, copy)


def errors_between(job: Job, level: int, one: int, other: int, points: int) -> list[dict[str, float]]:
    """Measure the errors on the line between two copies. Workers call this function."""
    finished = _finished(job)
    ends = finished.train_copy(level, one), finished.train_copy(level, other)
    return [dataclasses.asdict(error) for error in finished.errors_between(*ends, points)]


def _finished(job: Job) -> "FinishedTrajectory":
    from ticket_search.engines.worker import prepare
    from ticket_search.lottery.finished import FinishedTrajectory
    from ticket_search.store.level_store import LevelStore

    task = prepare(job)
    return FinishedTrajectory(job.trajectory, task, LevelStore(job.store), checkpoint_seconds=job.checkpoint_seconds)


def _dense_from(iteration: int, trajectory: TrajectorySpec, task: "Task") -> TrajectorySpec:
    """Return a trajectory that trains only the dense network, with the given rewind iteration.

    Raises:
        SpecError: the iteration is not before the end of training.
    """
    plain = trajectory.model_dump(mode="json")
    plain |= {"pruning": {"rewind_iteration": iteration}, "controls": {}}
    dense = validate(TrajectorySpec, plain)
    dense.resolve(task.training_examples)
    return dense


def write_stability(run_dir: Folder, ticket: str, lines: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Write a ticket's tables ``stability`` and ``stability_lines``, and its plot.

    Returns:
        The table ``stability``, and the path of the plot.
    """
    name, table = ticket.replace("/", "-"), stability_table(lines)
    (run_dir / "stability_lines").write(f"{name}.parquet", lines.to_parquet())
    (run_dir / "stability").write(f"{name}.parquet", table.to_parquet())
    (run_dir / "plots").write(f"stability-{name}.svg", plot(lines))
    return table, (run_dir / "plots").place(f"stability-{name}.svg")
