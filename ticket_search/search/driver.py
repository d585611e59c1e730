"""The driver of a search, which hands out trajectories to an engine and records the results that the engine reports.

The driver does not depend on Ray. Its state is in the tables and the record of suggestions, so a new process can
resume from them.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import log2
from typing import Any

from ticket_search.config.search import SearchSpec
from ticket_search.errors import SpecError, TicketSearchError, quoted
from ticket_search.results.events import EventLog
from ticket_search.results.figures import CONFIGURATION_NAMES
from ticket_search.results.schema import column
from ticket_search.results.tables import Tables
from ticket_search.results.tensorboard import TensorBoardWriter
from ticket_search.search.early_stopping import EarlyStopping
from ticket_search.search.rebuilding import Settled, is_whole, lacks_rows, settled_before
from ticket_search.search.reports import (
    SETTLED,
    EndReport,
    LevelReport,
    Listener,
    Progress,
    Row,
)
from ticket_search.search.sampler import Outcome, Sampler
from ticket_search.search.suggestions import Suggestion, SuggestionRecord
from ticket_search.storage.folder import Location, open_folder
from ticket_search.tasks.metric import Metric

#: The minimum time between two flushes of the tables, in seconds.
_FLUSH_SECONDS = 2.0
#: The minimum time between two flushes, as a multiple of the duration of the last flush.
_FLUSH_SHARE = 20.0
#: The columns of `levels` that early stopping and the sampler need when a search resumes.
_LEVEL_COLUMNS = [
    *("trajectory_id", "level", "seed", "compression", "density"),
    *("val_metric", "dense_val_metric", "matching", "metric", "higher_is_better"),
]


class SearchDriver:
    """Hands out suggestions, receives finished levels, and records both.

    Args:
        spec: the search.
        run_dir: the run directory. If it contains tables and a record of suggestions, the search resumes from them.
        listener: called whenever a trajectory ends, with the progress and the trajectory's row of `trajectories`.
        say: receives lines of text for the user.
        is_asked_to_stop: returns whether the search should stop; called every few seconds.
        guard: called before the tables or the record of suggestions are written; raises an error if this process has
            lost its claim on the run directory.

    Attributes:
        spec: the search.
        halted: the error after which the search cannot continue; None if there has been none.
        say: receives lines of text for the user.
        progress: the progress of the search, kept up to date.
    """

    def __init__(
        self,
        spec: SearchSpec,
        run_dir: Location,
        listener: Listener = lambda progress, row: None,
        *,
        say: Callable[[str], None] = lambda notice: None,
        is_asked_to_stop: Callable[[], bool] = lambda: False,
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        run_dir = open_folder(run_dir)
        self.spec = spec
        self.halted: TicketSearchError | None = None
        self.say = say
        self._is_asked_to_stop = is_asked_to_stop
        self._guard = guard
        self.progress = Progress(trials=spec.planned_trials)
        self._listener = listener
        self._run_dir = run_dir
        self._record = SuggestionRecord(run_dir)
        recorded = self._record.read()
        self._tables = Tables(run_dir, spec.space, say, has_begun=bool(recorded))
        self._tensorboard = TensorBoardWriter(run_dir / "tensorboard", spec.space)
        self._events = EventLog(run_dir)
        self._sampler = Sampler(spec)
        self._early_stopping = EarlyStopping(spec.search.early_stopping, spec.search.tolerance)
        self._running: dict[int, Row] = {}
        self._started: set[int] = set()
        self._deaths: Counter[int] = Counter()
        self._best: dict[int, Row] = {}
        self._suggestions: dict[int, Suggestion] = {}
        self._waiting: list[Suggestion] = []
        self._rebuilding: dict[int, Settled] = {}
        self._flush_after = 0.0
        self._resume(recorded)

    @property
    def unfinished(self) -> int:
        """The number of trajectories that have been handed out but have not ended."""
        return len(self._running)

    @property
    def level_keys_to_rebuild(self) -> set[str]:
        """The keys of the levels whose rows must be rebuilt because a chunk or a table was damaged or removed."""
        return {key for settled in self._rebuilding.values() for key in settled.level_keys}

    @property
    def is_ending(self) -> bool:
        """Whether the search has stopped handing out trajectories, because it was asked to stop or cannot continue."""
        return self.progress.stopped or self.halted is not None

    def next(self) -> Suggestion | None:
        """Record the next trajectory and return it; return None if there is none or the search is ending."""
        while not self.is_ending and (suggestion := self._waiting.pop(0) if self._waiting else self._drawn()):
            self._running[suggestion.number] = self._trajectory_row(suggestion)
            self._tables.trajectories.put(self._running[suggestion.number])
            try:
                self.spec.trajectory_at(suggestion.values, suggestion.seed)
            except SpecError as error:
                # Before the start, only the corners of a large space were checked (`SearchSpec.points_to_check`).
                self.ended(suggestion.number, EndReport(status="failed", reason=" ".join(str(error).split())))
                continue
            return suggestion
        return None

    def level_finished(self, number: int, report: LevelReport) -> str | None:
        """Record a finished level of the trajectory of suggestion `number`.

        Returns:
            The reason to stop the trajectory, or None if it should continue.
        """
        for notice in report.notices:
            self.say(notice)
        trajectory, values = self._running[number], self._suggestions[number].values
        row = report.level | {column(name): value for name, value in values.items()}
        key = (row["trajectory_id"], row["level"])
        if row["level"] == 0:
            # A trajectory whose worker died starts over and reports its levels again.
            self._early_stopping.forget(row["trajectory_id"])
            trajectory.update(levels=0, iterations=0, train_seconds=0.0, sparsest_matching_density=None)
            self._best.pop(number, None)
        # Write these rows even if `levels` already contains the level, because a chunk of their tables may have been
        # lost. A table ignores a group of rows that it already has.
        self._tables.curves.put_group(report.curve)
        self._tables.layers.put_group(report.layers)
        self._tables.controls.put_group(report.controls)
        self._tables.early_bird.put_group(report.early_bird)
        if key not in self._tables.levels:
            self._tables.levels.put(row)
            self._tensorboard.level(row, report.curve)
        self.progress.levels += 1
        self._count(number, trajectory, row)
        self._tables.trajectories.put(trajectory)
        self.flush_if_due()
        reason = self._observe(row)
        if (settled := self._rebuilding.get(number)) is not None:
            return settled.reason if trajectory["levels"] == settled.stop_after else None
        # A replayed trajectory is not stopped before it has reached every level that it reached the first time.
        return None if (row["trajectory_id"], row["level"] + 1) in self._tables.levels else reason

    def ended(self, number: int, end: EndReport) -> None:
        """Record that the trajectory of suggestion `number` has ended, by itself or by early stopping."""
        row = self._running.pop(number)
        row |= {"status": end.status, "reason": end.reason, "error": end.error}
        self._tables.trajectories.put(row)
        self._tensorboard.trajectory(row)
        self._events.log("trajectory_ended", trajectory_id=row["trajectory_id"], status=end.status, reason=end.reason)
        self._sampler.tell(self._suggestions[number], self._outcome(row, self._best.pop(number, None)))
        self._started.discard(number)
        self.progress.counts["running"] = len(self._started & self._running.keys())
        self.progress.counts[end.status] += 1
        if self._rebuilding.pop(number, None) and not self._rebuilding:
            self._guard()
            self._tables.rebuilt()
        self.flush_if_due()
        self._listener(self.progress, row)

    def hand_out_again(self, number: int) -> bool:
        """Take back a trajectory whose worker died, to hand it out again.

        Returns:
            Whether the trajectory was taken back; False if its workers have died more than `max_failures` times.
        """
        self._deaths[number] += 1
        if self._deaths[number] > self.spec.search.max_failures:
            return False
        self.take_back(number)
        return True

    def take_back(self, number: int) -> None:
        """Take back a trajectory that has not ended, to hand it out again before any other."""
        del self._running[number]
        self._waiting.insert(0, self._suggestions[number])
        self.progress.counts["running"] = len(self._started & self._running.keys())

    def started(self, number: int) -> None:
        """Record that a worker has started the trajectory of suggestion `number`, for the first time or again."""
        event = "trajectory_restarted" if number in self._started else "trajectory_started"
        self._events.log(event, trajectory_id=self._suggestions[number].trajectory_id)
        self._started.add(number)
        self.progress.counts["running"] = len(self._started & self._running.keys())

    def halt(self, error: TicketSearchError) -> None:
        """Record an error after which the search cannot continue; only the first error is kept."""
        self.halted = self.halted or error

    def flush(self) -> None:
        """Write the tables.

        Raises:
            StorageError: the tables could not be written; the next flush will try again.
            TicketSearchError: this process has lost its claim on the run directory, so nothing was written.
        """
        self._guard()
        self._tensorboard.flush()
        self._tables.flush()

    def flush_if_due(self) -> None:
        """Every few seconds, write the tables and check for a stop request.

        The interval grows with the duration of a flush, so that flushing takes at most a twentieth of the time.
        """
        started = time.monotonic()
        if started < self._flush_after or self.halted:
            return
        self.flush()
        self.progress.stopped = self.progress.stopped or self._is_asked_to_stop()
        now = time.monotonic()
        self._flush_after = now + max(_FLUSH_SECONDS, _FLUSH_SHARE * (now - started))

    def _drawn(self) -> Suggestion | None:
        """Draw and record a new suggestion; return None if there are none left."""
        if self.progress.exhausted:
            return None
        if self.progress.trials is not None and len(self._suggestions) >= self.progress.trials:
            self.progress.exhausted = self.progress.trials < (self.spec.search.trials or 0)
            return None
        suggestion = self._sampler.ask()
        if suggestion is None:
            self.progress.exhausted = True
            return None
        self._guard()
        self._record.append(suggestion)
        self._suggestions[suggestion.number] = suggestion
        return suggestion

    def _count(self, number: int, trajectory: Row, row: Row) -> None:
        trajectory["levels"] += 1
        trajectory["iterations"] += row["iterations"]
        trajectory["train_seconds"] += row["train_seconds"]
        if row["matching"]:
            self._best[number] = row
            trajectory["score"] = log2(row["compression"])
            if row["level"] > 0:
                trajectory["sparsest_matching_density"] = row["density"]
                self._note_ticket(row)

    def _note_ticket(self, row: Row) -> None:
        if self.progress.best is None or row["density"] < self.progress.best["density"]:
            self.progress.best = row

    def _observe(self, row: Row) -> str | None:
        return self._early_stopping.observe(
            row["trajectory_id"],
            compression=row["compression"],
            value=row["val_metric"],
            dense=row["dense_val_metric"],
            metric=Metric(name=row["metric"], higher_is_better=row["higher_is_better"], unit=""),
        )

    def _trajectory_row(self, suggestion: Suggestion) -> Row:
        fixed = {name: getattr(self.spec.pruning, name) for name in CONFIGURATION_NAMES}
        searched = {column(name): value for name, value in suggestion.values.items()}
        return {
            "trajectory_id": suggestion.trajectory_id,
            **fixed,
            **searched,
            "seed": suggestion.seed,
            "status": "running",
            "reason": None,
            "levels": 0,
            "score": None,
            "sparsest_matching_density": None,
            "iterations": 0,
            "train_seconds": 0.0,
            "error": None,
        }

    def _outcome(self, row: Mapping[str, Any], best: Mapping[str, Any] | None) -> Outcome:
        return Outcome(
            failed=row["status"] == "failed",
            score=row["score"],
            merit=None if best is None else best["val_metric"] * (1 if best["higher_is_better"] else -1),
        )

    def _replay(self, suggestion: Suggestion, outcome: Outcome | None) -> None:
        try:
            self._sampler.replay(suggestion, outcome)
        except (ValueError, KeyError) as error:
            values = quoted(dict(suggestion.values))
            what = f"suggestion {suggestion.number} has the values {values}, which are not in the space"
            raise self._record.damaged(what) from error

    def _resume(self, recorded: Sequence[Suggestion]) -> None:
        """Restore the state of the sampler and of early stopping from the record of suggestions and the tables."""
        trajectories = {row["trajectory_id"]: row for row in self._tables.trajectories.rows()}
        levels: dict[str, list[Row]] = {}
        for row in self._tables.levels.rows(_LEVEL_COLUMNS):
            levels.setdefault(row["trajectory_id"], []).append(row)
        ended = [row for row in trajectories.values() if row["status"] in SETTLED]
        if not self._tables.must_be_rebuilt and any(lacks_rows(self._tables, row) for row in ended):
            self._tables.note_damage(
                "rows of finished trajectories are missing; they will be rebuilt from the level store"
            )
        settled = settled_before(self._run_dir, trajectories) if self._tables.must_be_rebuilt else {}
        for suggestion in recorded:
            self._suggestions[suggestion.number] = suggestion
            row = trajectories.get(suggestion.trajectory_id, {"status": "running", "levels": 0})
            if suggestion.trajectory_id in settled and not self._is_whole(suggestion, row):
                self._rebuilding[suggestion.number] = settled[suggestion.trajectory_id]
                row = {"status": "running"}
            if row["status"] not in SETTLED:
                self._waiting.append(suggestion)
                self._replay(suggestion, None)
                continue
            reached = sorted(levels.get(suggestion.trajectory_id, []), key=lambda level: int(level["level"]))
            for level in reached:
                self._observe(level)
            matching = [level for level in reached if level["matching"]]
            self._replay(suggestion, self._outcome(row, matching[-1] if matching else None))
            self.progress.counts[row["status"]] += 1
            if len(matching) > 1:
                self._note_ticket(matching[-1])
        if self._tables.must_be_rebuilt and not self._rebuilding:
            self._tables.rebuilt()

    def _is_whole(self, suggestion: Suggestion, row: Row) -> bool:
        return is_whole(self._tables, row, self.spec.trajectory_at(suggestion.values, suggestion.seed))
