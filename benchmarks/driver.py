"""Measure the time and memory overhead of a search with thousands of trajectories, and the time to read its tables.

Everything is real (Ray Tune, sampler, early stopping, record of suggestions, tables, TensorBoard files, events) except
the training: instead of training, each level sleeps for --seconds. The ideal time is the total time slept, divided by
the number of workers. Memory is the resident set size of the driver, measured after each tenth of the trajectories. The
slope is fitted to the measurements in the second half of the search, when all libraries are already loaded.

    python benchmarks/driver.py                    # 5,000 trajectories; takes 15 minutes on two cores
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
from machine import describe

from ticket_search import load_results
from ticket_search.config.base import validate
from ticket_search.config.identity import trajectory_id
from ticket_search.config.search import SearchSpec
from ticket_search.engines.job import Job
from ticket_search.engines.ray.connection import connect
from ticket_search.engines.ray.trainable import Report, TrajectoryTrainable
from ticket_search.engines.ray.tune_hooks import run_on_ray
from ticket_search.results.figures import CURVE_FIGURES, FIGURES, Finished, configuration, stored_figures
from ticket_search.search.driver import SearchDriver
from ticket_search.search.reports import EndReport, LevelReport
from ticket_search.storage.folder import open_folder
from ticket_search.tasks.classification import ACCURACY

POINTS, LAYERS = 10, 3


def scripted(job: Job, levels: int, seconds: float) -> Iterator[Report]:
    """Yield reports of a trajectory's levels. The accuracy falls steadily, at a rate derived from the ID."""
    name = trajectory_id(job.trajectory)
    fall = int(name[:4], 16) / 2**16 * 0.02
    for level in range(levels):
        time.sleep(seconds)
        yield report(job, name, level, 0.97 - fall * level)
    yield EndReport(status="completed")


def report(job: Job, name: str, level: int, accuracy: float) -> LevelReport:
    """Return the report of a level of LeNet-300-100 with made-up figures; `name` is the trajectory's ID."""
    spec = job.trajectory
    kept = int(266_200 * (1 - spec.pruning.pruning_rate) ** level)
    key = {"trajectory_id": name, "level": level}
    measured = {figure.name: 0.97 if figure.type == "double" else None for figure in stored_figures()}
    measured |= {"early_stop_iteration": 100, "iterations": 1000}
    made = SimpleNamespace(
        kept_weights=kept,
        prunable_weights=266_200,
        val_loss=0.1,
        val_metric=accuracy,
        figures=measured,
        reused=False,
        diverged=False,
        **measured,
    )
    dense = SimpleNamespace(**vars(made) | {"val_metric": 0.97})
    finished = Finished(level=made, dense=dense, metric=ACCURACY, spec=spec, tolerance=0.0)
    row = key | configuration(spec) | {figure.name: figure.of(finished) for figure in FIGURES}
    points = [SimpleNamespace(iteration=100 * i, train_loss=0.1, val_loss=0.1, val_metric=0.97) for i in range(POINTS)]
    curve = [key | {figure.name: figure.value(point, ACCURACY) for figure in CURVE_FIGURES} for point in points]
    layers = [
        key | {"name": f"layer{i}", "kept_weights": kept, "weights": 266_200, "density": 0.5} for i in range(LAYERS)
    ]
    return LevelReport(level=row | {"level_key": f"{name}{level:016}"}, curve=curve, layers=layers)


def make_space(sampler: str, trials: int, workers: int, cpus: int) -> SearchSpec:
    """Return a search whose pruning rate is drawn from a continuous range, so that no point is drawn twice."""
    return validate(
        SearchSpec,
        {
            "name": "driver",
            "dataset": {"name": "digits", "validation": 300},
            "model": {"name": "lenet_16"},
            "training": {
                "optimizer": {"name": "sgd", "lr": 0.1},
                "batch_size": 64,
                "iterations": 1000,
                "evaluate_every": 100,
            },
            "space": {
                "pruning_rate": {"low": 0.1, "high": 0.6},
                "strategy": ["layerwise", "global"],
                "rewind_iteration": [0, 100, 500],
            },
            "seeds": [0, 1, 2],
            # Early stopping compares trajectories as usual but never stops one, so the total time slept is known.
            "search": {
                "trials": trials,
                "sampler": sampler,
                "early_stopping": {"min_trajectories": 10**6},
            },
            "resources": {"cpus": cpus / workers},
        },
    )


def main() -> None:
    """Run the benchmark and print the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--levels", type=int, default=4, help="levels per trajectory")
    parser.add_argument("--seconds", type=float, default=0.25, help="how long a level sleeps")
    parser.add_argument("--sampler", default="random")
    arguments = parser.parse_args()
    levels, seconds = arguments.levels, arguments.seconds

    class Scripted(TrajectoryTrainable):
        def reports(self, job: Job) -> Iterator[Report]:
            return scripted(job, levels, seconds)

    print(describe("ray", "optuna", "pyarrow"))
    print(
        f"{arguments.trials} trajectories of {levels} levels of {seconds} s, {POINTS} evaluations each, on "
        f"{arguments.workers} workers, sampler {arguments.sampler}"
    )
    process = psutil.Process()
    samples: list[tuple[int, float, float]] = []
    with tempfile.TemporaryDirectory() as scratch, connect(None):
        import ray

        run_dir = open_folder(scratch)
        cpus = int(ray.cluster_resources()["CPU"])
        spec = make_space(arguments.sampler, arguments.trials, arguments.workers, cpus)

        def note(progress: object, row: object) -> None:
            done = search.progress.done
            if done % max(1, arguments.trials // 10) == 0 or done == 1:
                samples.append((done, time.perf_counter() - started, process.memory_info().rss / 1e6))
                print(f"{done:>7} trajectories {samples[-1][1]:>8.1f} s {samples[-1][2]:>7.0f} MB", flush=True)

        search = SearchDriver(spec, run_dir, note)
        started, busy = time.perf_counter(), process.cpu_times()
        run_on_ray(search, run_dir, trainable=Scripted)
        search.flush()
        wall, after = time.perf_counter() - started, process.cpu_times()
        ideal = arguments.trials * levels * seconds / arguments.workers
        print(f"{wall:.1f} s; ideal {ideal:.1f} s; overhead {wall / ideal - 1:.1%}")
        print(f"the driver was busy for {(after.user + after.system - busy.user - busy.system) / wall:.0%} of the time")
        half = np.array([sample for sample in samples if sample[0] >= arguments.trials / 2])
        slope = np.polyfit(half[:, 0], half[:, 2], 1)[0] * 1000
        print(f"memory of the driver: {slope:.1f} kB a trajectory over the second half")
        for name, read in {
            "reading the tables": load_results,
            "resuming the search": lambda _: SearchDriver(spec, run_dir),
        }.items():
            before = time.perf_counter()
            found = read(scratch)
            print(f"{name}: {time.perf_counter() - before:.2f} s")
            if name == "reading the tables":
                print(f"  {len(found.levels)} levels, {len(found.curves)} points of curves, {len(found.layers)} layers")
                files = list(Path(scratch).rglob("part-*.parquet"))
                print(f"  {len(files)} Parquet files, {sum(path.stat().st_size for path in files) / 1e6:.1f} MB")
                assert len(found.levels) == arguments.trials * levels
                assert set(found.trajectories["status"]) == {"completed"}


if __name__ == "__main__":
    main()
