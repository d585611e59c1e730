"""One search, told by whoever runs its trajectories what came of them. Knows nothing of Ray, so a test can drive it.

The tables and the record of suggestions are its memory: a new process reads them and goes on.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import log2
from typing import Any

from ticket_search.config.search import SearchSpec
from ticket_search.errors import SpecError, TicketSearchError
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

#: Between two writings of the tables, at least; and this many times as long as the last writing took.
_FLUSH_SECONDS = 2.0
_FLUSH_SHARE = 20.0
#: What early stopping and the sampler need to know of the levels of an earlier process.
_LEVEL_COLUMNS = [
    *("trajectory_id", "level", "seed", "compression", "density"),
    *("val_metric", "dense_val_metric", "matching", "metric", "higher_is_better"),
]


class SearchDriver:
    """Hands out suggestions, takes in levels, and writes down both.

    Args:
        spec: what to search.
        run_dir: where the tables and the record lie; what is there is gone on from.
        listener: told of every trajectory that ends, with its row of `trajectories`.
        say: told, in a line, of what the user should know.
        is_asked_to_stop: asked every few seconds.
        guard: called before anything is written; raises if the directory is not this process's any more.
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
        self._go_on_from_the_disk(recorded)

    @property
    def unfinished(self) -> int:
        """How many of the trajectories that were handed out have not ended."""
        return len(self._running)

    @property
    def level_keys_to_rebuild(self) -> set[str]:
        """The keys of the levels whose rows are rebuilt, after a chunk or a table was damaged or removed."""
        return {key for settled in self._rebuilding.values() for key in settled.level_keys}

    @property
    def is_ending(self) -> bool:
        """Whether no more trajectories are handed out, since it was asked to stop or cannot go on."""
        return self.progress.stopped or self.halted is not None

    def next(self) -> Suggestion | None:
        """The next trajectory to run, recorded by now; None when there is none, or none is to be started any more."""
        while not self.is_ending and (suggestion := self._waiting.pop(0) if self._waiting else self._drawn()):
            self._running[suggestion.number] = self._trajectory_row(suggestion)
            self._tables.trajectories.put(self._running[suggestion.number])
            try:
                self.spec.trajectory_at(suggestion.values, suggestion.seed)
            except SpecError as error:
                # Before the start, only the corners of a large space are checked (`SearchSpec.points_to_check`).
                self.ended(suggestion.number, EndReport(status="failed", reason=" ".join(str(error).split())))
                continue
            return suggestion
        return None

    def level_finished(self, number: int, report: LevelReport) -> str | None:
        """Take in a level of the trajectory of suggestion `number`.

        Returns:
            Why the trajectory should be dropped, or None.
        """
        for notice in report.notices:
            self.say(notice)
        trajectory, values = self._running[number], self._suggestions[number].values
        row = report.level | {column(name): value for name, value in values.items()}
        key = (row["trajectory_id"], row["level"])
        if row["level"] == 0:
            # A trajectory that starts over, after its worker died, tells its levels again.
            self._early_stopping.forget(row["trajectory_id"])
            trajectory.update(levels=0, iterations=0, train_seconds=0.0, sparsest_matching_density=None)
            self._best.pop(number, None)
        # Even if the level has its row: a chunk of these tables may have been lost. No group is put twice.
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
        # A trajectory that is told again has been further than this: it is not cut below what it has shown.
        return None if (row["trajectory_id"], row["level"] + 1) in self._tables.levels else reason

    def ended(self, number: int, end: EndReport) -> None:
        """Take in that the trajectory of suggestion `number` has ended, by itself or dropped."""
        row = self._running.pop(number)
        row |= {"status": end.status, "reason": end.reason, "error": end.error}
        self._tables.trajectories.put(row)
        self._tensorboard.trajectory(row)
        self._events.log("trajectory_ended", trajectory_id=row["trajectory_id"], status=end.status, reason=end.reason)
        self._sampler.tell(self._suggestions[number], self._outcome(row, self._best.pop(number, None)))
        self._started.discard(number)
        self.progress.counts["running"] = len(self._started)
        self.progress.counts[end.status] += 1
        if self._rebuilding.pop(number, None) and not self._rebuilding:
            self._guard()
            self._tables.rebuilt()
        self.flush_if_due()
        self._listener(self.progress, row)

    def hand_out_again(self, number: int) -> bool:
        """Take back a trajectory whose worker died before it began; False if that has happened `max_failures` times."""
        self._deaths[number] += 1
        if self._deaths[number] > self.spec.search.max_failures:
            return False
        self.take_back(number)
        return True

    def take_back(self, number: int) -> None:
        """Take back a trajectory that was handed out and has not begun; it is the next to be handed out."""
        del self._running[number]
        self._waiting.insert(0, self._suggestions[number])

    def started(self, number: int) -> None:
        """Note that a worker has taken up the trajectory of suggestion `number`, for the first time or again."""
        event = "trajectory_restarted" if number in self._started else "trajectory_started"
        self._events.log(event, trajectory_id=self._suggestions[number].trajectory_id)
        self._started.add(number)
        self.progress.counts["running"] = len(self._started)

    def halt(self, error: TicketSearchError) -> None:
        """Note that the search cannot go on; of several errors the first counts."""
        self.halted = self.halted or error

    def flush(self) -> None:
        """Write the tables.

        Raises:
            StorageError: they could not be written, and will be by the next flush.
            TicketSearchError: from `guard`; nothing is written.
        """
        self._guard()
        self._tensorboard.flush()
        self._tables.flush()

    def flush_if_due(self) -> None:
        """Write the tables every few seconds: seldom enough to spend a twentieth of the time on it at most."""
        started = time.monotonic()
        if started < self._flush_after or self.halted:
            return
        self.flush()
        self.progress.stopped = self.progress.stopped or self._is_asked_to_stop()
        now = time.monotonic()
        self._flush_after = now + max(_FLUSH_SECONDS, _FLUSH_SHARE * (now - started))

    def _drawn(self) -> Suggestion | None:
        """A new suggestion, recorded before it is handed out; None when there is none left."""
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

    def _go_on_from_the_disk(self, recorded: Sequence[Suggestion]) -> None:
        """Rebuild what the sampler and early stopping know from the record and the tables."""
        trajectories = {row["trajectory_id"]: row for row in self._tables.trajectories.rows()}
        levels: dict[str, list[Row]] = {}
        for row in self._tables.levels.rows(_LEVEL_COLUMNS):
            levels.setdefault(row["trajectory_id"], []).append(row)
        ended = [row for row in trajectories.values() if row["status"] in SETTLED]
        if not self._tables.must_be_rebuilt and any(lacks_rows(self._tables, row) for row in ended):
            self._tables.note_damage("rows of finished trajectories are missing; they are rebuilt from the level store")
        settled = settled_before(self._run_dir, trajectories) if self._tables.must_be_rebuilt else {}
        for suggestion in recorded:
            self._suggestions[suggestion.number] = suggestion
            row = trajectories.get(suggestion.trajectory_id, {"status": "running", "levels": 0})
            if suggestion.trajectory_id in settled and not self._is_whole(suggestion, row):
                self._rebuilding[suggestion.number] = settled[suggestion.trajectory_id]
                row = {"status": "running"}
            if row["status"] not in SETTLED:
                self._waiting.append(suggestion)
                self._sampler.replay(suggestion, None)
                continue
            reached = sorted(levels.get(suggestion.trajectory_id, []), key=lambda level: int(level["level"]))
            for level in reached:
                self._observe(level)
            matching = [level for level in reached if level["matching"]]
            self._sampler.replay(suggestion, self._outcome(row, matching[-1] if matching else None))
            self.progress.counts[row["status"]] += 1
            if len(matching) > 1:
                self._note_ticket(matching[-1])
        if self._tables.must_be_rebuilt and not self._rebuilding:
            self._tables.rebuilt()

    def _is_whole(self, suggestion: Suggestion, row: Row) -> bool:
        return is_whole(self._tables, row, self.spec.trajectory_at(suggestion.values, suggestion.seed))
