"""Wraps the worker as a Ray Tune trainable, whose process is reused for the next trajectory."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import ray
from ray import tune

from ticket_search.engines.job import JOB, REPORT, Job
from ticket_search.engines.worker import Report, run_job
from ticket_search.search.reports import LevelReport, NotShared


class TrajectoryTrainable(tune.Trainable):
    """Runs one trajectory per trial and one level per step. The last step reports how the trajectory ended."""

    _reports: Iterator[Report]

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """Return the resources to reserve for a trial, on any node except those that the trial must not use."""
        job: Job = config[JOB]
        where: dict[str, Any] = {"bundle_label_selector": [{"ray.io/node-id": f"!in({','.join(job.left_out)})"}]}
        return tune.PlacementGroupFactory([{"CPU": job.cpus, "GPU": job.gpus}], **(where if job.left_out else {}))

    def setup(self, config: dict[str, Any]) -> None:
        """Start the first trajectory of this process."""
        job: Job = config[JOB]
        self._number = job.number
        self._reports = self.reports(job)
        self.config = {}  # Ray would otherwise send the configuration back with every result

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start another trajectory. Nothing of the previous one stays in memory except its data set."""
        self.setup(new_config)
        return True

    def reports(self, job: Job) -> Iterator[Report]:
        """Run a job, and yield its reports."""
        return run_job(job)

    def step(self) -> dict[str, Any]:
        """Train the next level or read it from the store, and return its report."""
        report = next(self._reports)
        if isinstance(report, NotShared):
            report = replace(report, node=ray.get_runtime_context().get_node_id())
        return {REPORT: (self._number, report), "done": not isinstance(report, LevelReport)}
