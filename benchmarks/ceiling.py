"""Measure how many reports of finished levels a driver can receive, record and answer per second.

As in driver.py, only the training is simulated: each level just sleeps. A fixed number of trajectories (--workers) run
side by side. In each phase, their levels sleep for a shorter time than in the phase before, until the driver, or the
machine that runs both the driver and the workers, can no longer keep up. In the output, "requested" is the rate at
which levels would finish if the driver took no time, and "achieved" is the rate at which the driver adds levels to its
tables and answers their reports.

    python benchmarks/ceiling.py                   # takes four minutes on two cores
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Iterator

import psutil
from driver import make_space, report
from machine import describe

from ticket_search.config.identity import trajectory_id
from ticket_search.engines.job import Job
from ticket_search.engines.ray.connection import connect
from ticket_search.engines.ray.trainable import Report, TrajectoryTrainable
from ticket_search.engines.ray.tune_hooks import run_on_ray
from ticket_search.search.driver import SearchDriver
from ticket_search.search.reports import EndReport
from ticket_search.storage.folder import open_folder

#: The sleep per level in each phase, in seconds.
SLEEPS = (1.0, 0.5, 0.375, 0.3, 0.25, 0.2)


def scripted(job: Job, begin: float, phase: float) -> Iterator[Report]:
    """Yield reports of levels, all with the same density, until the last phase is over."""
    name = trajectory_id(job.trajectory)
    level = 0
    while (now := time.time() - begin) < phase * len(SLEEPS):
        time.sleep(SLEEPS[max(0, int(now // phase))])
        made = report(job, name, 0, 0.97)
        for row in (made.level, *made.curve, *made.layers):
            row["level"] = level
        made.level["level_key"] = f"{name}{level:016}"
        yield made
        level += 1
    yield EndReport(status="completed")


def main() -> None:
    """Run the benchmark and print the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=30)
    parser.add_argument(
        "--warmup", type=float, default=90.0, help="seconds to let the workers start before the first phase"
    )
    parser.add_argument("--phase", type=float, default=25.0, help="seconds per phase")
    arguments = parser.parse_args()
    begin, phase = time.time() + arguments.warmup, arguments.phase

    class Scripted(TrajectoryTrainable):
        def reports(self, job: Job) -> Iterator[Report]:
            return scripted(job, begin, phase)

    print(describe("ray", "optuna", "pyarrow"))
    print(f"{arguments.workers} trajectories side by side, phases of {phase:.0f} s")
    print(" requested  achieved  driver   machine")
    process = psutil.Process()
    with tempfile.TemporaryDirectory() as scratch, connect(None):
        import ray

        cpus = int(ray.cluster_resources()["CPU"])
        search = SearchDriver(make_space("random", arguments.workers, arguments.workers, cpus), open_folder(scratch))

        def measure() -> None:
            time.sleep(max(0.0, begin - time.time()))
            for sleep in SLEEPS:
                time.sleep(0.2 * phase)  # wait for the levels of the previous phase to finish
                levels, busy, started = search.progress.levels, sum(process.cpu_times()[:2]), time.perf_counter()
                psutil.cpu_percent()
                time.sleep(0.75 * phase)
                took = time.perf_counter() - started
                rate, share = (search.progress.levels - levels) / took, (sum(process.cpu_times()[:2]) - busy) / took
                line = f"{arguments.workers / sleep:>8.0f}/s {rate:>7.1f}/s {share:>7.0%} {psutil.cpu_percent():>8.0f}%"
                print(f"{line}   ({search.progress.counts['running']} running)", flush=True)
                time.sleep(max(0.0, 0.05 * phase))

        threading.Thread(target=measure, daemon=True).start()
        run_on_ray(search, open_folder(scratch), trainable=Scripted)
        search.flush()


if __name__ == "__main__":
    main()
