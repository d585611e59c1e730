"""Ray's worker: one trial is one trajectory, one step is one level. The process is kept for the next trajectory."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import ray
from ray import tune

from ticket_search.engines.job import JOB, REPORT, Job
from ticket_search.engines.worker import Report, run_job
from ticket_search.search.reports import LevelReport, NotShared


class TrajectoryTrainable(tune.Trainable):
    """One trial is one trajectory; one step is one level, and a last step says how it ended."""

    _reports: Iterator[Report]

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """What Ray sets aside for a trial, and the nodes where it must not."""
        job: Job = config[JOB]
        where: dict[str, Any] = {"bundle_label_selector": [{"ray.io/node-id": f"!in({','.join(job.left_out)})"}]}
        return tune.PlacementGroupFactory([{"CPU": job.cpus, "GPU": job.gpus}], **(where if job.left_out else {}))

    def setup(self, config: dict[str, Any]) -> None:
        """Take up the first trajectory of this process."""
        job: Job = config[JOB]
        self._number = job.number
        self._reports = self.reports(job)
        self.config = {}  # Ray sends it back with every result

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take up another trajectory; nothing of the last one is kept but the data set."""
        self.setup(new_config)
        return True

    def reports(self, job: Job) -> Iterator[Report]:
        """What running a job comes to, level by level."""
        return run_job(job)

    def step(self) -> dict[str, Any]:
        """Train, or find in the store, the next level."""
        report = next(self._reports)
        if isinstance(report, NotShared):
            report = replace(report, node=ray.get_runtime_context().get_node_id())
        return {REPORT: (self._number, report), "done": not isinstance(report, LevelReport)}
