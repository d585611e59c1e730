"""Runs several trajectories in one Ray Tune trial, for executors that train the levels of several together.

Each trial is one worker. `Crews` decides which trajectories the worker runs. It sends commands to the worker through a
mailbox, an actor that queues them until the worker collects them before its next step.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ticket_search.engines.job import JOB, REPORT, Job
from ticket_search.engines.ray.trainable import TrajectoryTrainable
from ticket_search.engines.receive import died
from ticket_search.engines.worker import Report, Worker
from ticket_search.errors import StorageError
from ticket_search.search.driver import SearchDriver
from ticket_search.search.reports import EndReport, HaltReport, LevelReport, NotShared, NotStarted

#: The key of the mailbox in the configuration of a trial.
MAILBOX = "mailbox"


class _Mailbox:
    """Queues the commands for each trial. A command is a job to start, or the number of a job to abandon."""

    def __init__(self) -> None:
        self._commands: dict[str, list[Job | int]] = defaultdict(list)

    def send(self, trial_id: str, command: Job | int) -> None:
        """Queue a command for a trial."""
        self._commands[trial_id].append(command)

    def collect(self, trial_id: str) -> list[Job | int]:
        """Remove and return the queued commands of a trial, in order."""
        return self._commands.pop(trial_id, [])


class LanesTrainable(TrajectoryTrainable):
    """Runs several trajectories per trial, and reports one level or one end per step."""

    def setup(self, config: dict[str, Any]) -> None:
        """Start with the trajectory of the configuration; others come through the mailbox."""
        self._mailbox = config[MAILBOX]
        self._worker = Worker()
        self._worker.take(config[JOB])
        self.config = {}  # Ray would otherwise send the configuration back with every result

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start another trial."""
        self.cleanup()
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train until a trajectory reports, and return its number and report."""
        for command in ray.get(self._mailbox.collect.remote(self.trial_id)):
            if isinstance(command, Job):
                self._worker.take(command)
            elif command in self._worker.numbers:
                self._worker.drop(command)
        number, report = self._worker.advance()
        if isinstance(report, NotShared):
            report = replace(report, node=ray.get_runtime_context().get_node_id())
        return {REPORT: (number, report)}

    def cleanup(self) -> None:
        """Abandon all trajectories."""
        self._worker.close()


class Crews:
    """The trajectories of each trial.

    Args:
        search: the driver of the search.
        lanes: the maximum number of trajectories of a trial.
        next_job: returns the next job, or None if there is none at the moment.

    Attributes:
        leave_out: called with a number and a report when a worker cannot reach the storage.
        mailbox: the mailbox of all trials.
    """

    leave_out: Callable[[int, NotShared], None]

    def __init__(self, search: SearchDriver, lanes: int, next_job: Callable[[], Job | None]) -> None:
        self._search = search
        self._lanes = lanes
        self._next_job = next_job
        self._crews: dict[str, set[int]] = {}
        self._abandoned: set[str] = set()
        # Run the mailbox on the driver's node, because the search ends anyway if that node is lost.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.mailbox: Any = ray.remote(_Mailbox).options(num_cpus=0, scheduling_strategy=here).remote()

    def __len__(self) -> int:
        """Return the number of trials that have trajectories."""
        return len(self._crews)

    def close(self) -> None:
        """End the mailbox's process."""
        ray.kill(self.mailbox)

    def begin(self, trial_id: str, job: Job, workers: int) -> None:
        """Give a new trial its first trajectories.

        Args:
            trial_id: the trial.
            job: the trajectory in the trial's configuration.
            workers: the number of workers among which the trajectories of the search are divided.
        """
        self._crews[trial_id] = {job.number}
        trials = self._search.progress.trials
        self._fill(trial_id, self._lanes if trials is None else min(self._lanes, math.ceil(trials / workers)))

    def receive(self, trial_id: str, number: int, report: Report) -> bool:
        """Pass a worker's report to the search, and fill its lanes.

        Returns:
            Whether the trial should end, because it has no trajectory left.
        """
        if not self._continues(number, report):
            self._crews[trial_id].discard(number)
            self._send(trial_id, number)
        if isinstance(report, NotShared):  # the worker's other trajectories will report the same
            self._abandoned.add(trial_id)
        if trial_id not in self._abandoned:
            self._fill(trial_id, self._lanes)
        if self._crews[trial_id]:
            return False
        del self._crews[trial_id]
        return True

    def _continues(self, number: int, report: Report) -> bool:
        search = self._search
        if isinstance(report, LevelReport):
            reason = search.level_finished(number, report)
            if reason is not None:
                search.ended(number, EndReport(status="stopped", reason=reason))
            return reason is None and not search.progress.stopped
        if isinstance(report, NotStarted):
            search.progress.stopped = True
        elif isinstance(report, NotShared):
            self.leave_out(number, report)
        elif isinstance(report, HaltReport):
            search.halt(StorageError(report.reason))
        else:
            search.ended(number, report)
        return False

    def lost(self, trial_id: str, error: str | None) -> None:
        """After a trial's worker has died, hand out its trajectories again, unless their workers died too often."""
        for number in self._crews.pop(trial_id, set()):
            if not self._search.hand_out_again(number):
                self._search.ended(number, died(self._search, "", error))

    def _fill(self, trial_id: str, lanes: int) -> None:
        crew = self._crews[trial_id]
        while len(crew) < lanes and (job := self._next_job()) is not None:
            self._search.started(job.number)
            crew.add(job.number)
            self._send(trial_id, job)

    def _send(self, trial_id: str, command: Job | int) -> None:
        # Wait until the command is queued, because the worker collects its commands as soon as this hook returns.
        ray.get(self.mailbox.send.remote(trial_id, command))
