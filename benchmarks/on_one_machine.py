"""The trajectories of a search space on one machine without Ray, in processes that share its GPU; resumable.

For machines where Ray is not to be had. Every point of the space is run with every seed, as `sampler: grid` would,
into a run directory with the same tables and the same level store; `load_results` reads it.

    python benchmarks/on_one_machine.py search_spaces/cifar10_conv2_paper.yaml --processes 5 --output runs/conv2
"""

import argparse
import multiprocessing as mp
import queue
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ticket_search.config.identity import trajectory_id
from ticket_search.config.loading import load_search
from ticket_search.config.search import SearchSpec, dotted
from ticket_search.config.trajectory import TrajectorySpec
from ticket_search.errors import Diverged
from ticket_search.results.schema import column
from ticket_search.results.tables import Tables

Rows = dict[str, Any]


def run(
    spec: TrajectorySpec, rewinds: list[int], data_dir: str, store: str, device: str, checkpoint_seconds: float
) -> Iterator[Rows]:
    """The rows of each level of a trajectory, by table."""
    import torch

    from ticket_search.lottery.rows import control_rows, curve_rows, layer_rows, level_row
    from ticket_search.lottery.trajectory import run_trajectory
    from ticket_search.store.level_store import LevelStore
    from ticket_search.tasks.registry import load_task

    torch.set_num_threads(1)
    task = load_task(spec, Path(data_dir), device)
    dense = None
    for level in run_trajectory(
        spec, task, LevelStore(store), rewind_iterations=rewinds, checkpoint_seconds=checkpoint_seconds
    ):
        dense = dense or level
        yield {
            "levels": level_row(spec, level, dense, 0.0),
            "curves": curve_rows(spec, level),
            "layers": layer_rows(spec, level),
            "controls": control_rows(spec, level),
        }


def work(tasks: Any, results: Any, *settings: Any) -> None:
    """What each process does: trajectories, until there are no more."""
    while (task := tasks.get()) is not None:
        number, spec = task
        try:
            for rows in run(spec, *settings):
                results.put((number, rows))
            results.put((number, "completed"))
        except Diverged as error:
            results.put((number, f"diverged: {error}"))


def points(search: SearchSpec) -> list[tuple[dict[str, Any], TrajectorySpec]]:
    """Every point with every seed: all points of a seed first, so that they share its dense network."""
    return [(values, search.point(values, seed)) for seed in search.seeds for values in search.grid()]


def main() -> None:
    """Run it and write the tables as levels are finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("space", type=Path)
    parser.add_argument("--output", required=True)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end after so long; start again to go on")
    arguments = parser.parse_args()
    started = time.monotonic()
    search = load_search(arguments.space, tuple(arguments.settings))
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "search.yaml").write_text(search.to_yaml())
    tables = Tables(output, search.space)
    todo = points(search)
    rewinds = sorted({spec.pruning.rewind_iteration for _, spec in todo})
    context = mp.get_context("spawn")
    tasks, results = context.Queue(), context.Queue()
    for number, (_, spec) in enumerate(todo):
        tasks.put((number, spec))
    settings = (rewinds, arguments.data_dir, str(output / "store"), arguments.device, 30.0)
    processes = [context.Process(target=work, args=(tasks, results, *settings)) for _ in range(arguments.processes)]
    for process in processes:
        tasks.put(None)
        process.start()
    left = len(todo)
    while left and any(process.is_alive() for process in processes):
        if time.monotonic() - started > arguments.seconds:
            break
        try:
            number, report = results.get(timeout=1)
        except queue.Empty:  # look again at the clock and the processes
            continue
        values, spec = todo[number]
        if isinstance(report, str):
            left -= 1
            print(f"{trajectory_id(spec)} {report}", flush=True)
            continue
        searched = {column(name): value for name, value in values.items()}
        row = report["levels"] | searched
        if (row["trajectory_id"], row["level"]) not in tables.levels:
            tables.levels.put(row)
            for name in ("curves", "layers", "controls"):
                getattr(tables, name).put_group(report[name])
            tables.flush()
        said = {dotted(name): value for name, value in values.items()}
        print(
            f"{time.monotonic() - started:7.1f} s  {row['trajectory_id']} {said} seed {row['seed']} "
            f"level {row['level']}: "
            f"density {row['density']:.4f}, test {row['test_accuracy']:.4f}, {row['train_seconds']:.1f} s",
            flush=True,
        )
    for process in processes:
        process.terminate()
        process.join()
    print(f"{time.monotonic() - started:.0f} s, {left} trajectories left")


if __name__ == "__main__":
    main()
