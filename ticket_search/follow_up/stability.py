"""Copies of a ticket and of its dense network, trained in parallel, and the errors between them."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from ticket_search.analysis.stability import plot, stability_table
from ticket_search.config.base import validate
from ticket_search.config.trajectory import TrajectorySpec
from ticket_search.engines.engine import open_engine
from ticket_search.engines.job import Job, make_job
from ticket_search.follow_up.export import find_ticket, open_finished, read_data
from ticket_search.runs.directory import COPIES, locked, read_spec
from ticket_search.storage.folder import Folder

if TYPE_CHECKING:
    from ticket_search.lottery.finished import FinishedTrajectory
    from ticket_search.tasks.task import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Arm:
    """A start that is trained several times: a ticket, or the dense network (level 0) from its rewind iteration on."""

    trajectory: TrajectorySpec
    level: int
    density: float

    @property
    def columns(self) -> dict[str, Any]:
        """Its columns in the table of errors."""
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

    Copies start from the same weights and differ in the order of the data, its augmentation and dropout. They are
    entries of the level store, so a later call reuses them. Their keys are noted in the run directory, for `store_use`.

    Args:
        run_dir: of the search.
        ticket: ``<trajectory_id>/<level>``.
        copies: of each start, at least 2.
        points: on each line, both ends included.
        rewinds: the iterations from which copies of the dense network are trained; none means those that the search
            lists, and the ticket's.
        data_dir: the folder of the data sets, if it is not the search's.
        engine, address: where copies are trained; see `launch.run.run_search`.
        say: receives lines about the progress.

    Returns:
        A row for each point: ``ticket``, ``arm`` (``ticket`` or ``dense``), ``rewind_iteration``, ``density``,
        ``first`` and ``second`` (numbers of the copies), ``position`` (0 at the first, 1 at the second), ``val_error``
        and ``test_error`` (the metric as an error, see `Task.error`; nan where a copy diverged).

    Raises:
        SpecError: the search has no such ticket, the data have changed, or a rewind is past the training.
        RunDirectoryError: another process runs the directory.
        TicketSearchError: a training failed.
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
    # The lock keeps `store --keep-best` from removing copies that are in use, and another call from this table.
    with locked(run_dir, say), open_engine(engine, address, room=source.size) as opened:
        (run_dir / COPIES).write(f"{ticket.replace('/', '-')}.json", json.dumps(keys).encode())
        opened.plan(spec)
        data = opened.share({trajectory.dataset.source: source})
        jobs = [make_job(spec, 0, arm.trajectory, run_dir, "", data) for arm in arms]
        starts = [(job, arm.level) for job, arm in zip(jobs, arms, strict=True)]
        say(f"{len(arms) * copies} trainings: {copies} of each of a ticket and {len(dense)} dense networks")
        opened.call(train_copy, [(*start, copy) for start in starts for copy in range(copies)], spec, "trained", say)
        lines = [(*start, *pair, points) for start in starts for pair in pairs]
        errors = opened.call(errors_between, lines, spec, "measured", say)
    heads = [{"ticket": ticket} | arm.columns | {"first": a, "second": b} for arm in arms for a, b in pairs]
    return pd.DataFrame([head | point for head, line in zip(heads, errors, strict=True) for point in line])


def train_copy(job: Job, level: int, copy: int) -> None:
    """In a worker: train a copy, unless it is in the store."""
    _finished(job).train_copy(level, copy)


def errors_between(job: Job, level: int, one: int, other: int, points: int) -> list[dict[str, float]]:
    """In a worker: the errors on the line between two copies that are in the store."""
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
    """The trajectory of the dense network alone, with this iteration to rewind to.

    Raises:
        SpecError: the iteration is past the training.
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
