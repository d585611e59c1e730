"""Kill processes of a search at random moments, and compare its final results with those of an undisturbed search.

    python tests/ballistic.py --kills 100                        # with engines ray and processes in turn
    python tests/ballistic.py --kills 1000 --engine processes

The search runs in its own process group (and with its own Ray instance). At random moments, SIGKILL is sent to one of
its processes (the driver, a worker or the raylet) or to all of them at once. After the driver has died, the same
command immediately resumes the search. If a search finishes before the requested number of kills, another one starts.
Searches alternate between one and two workers and between the engines.

When a search is done, every trajectory must be complete, no row may be duplicated, every level must have finished
exactly once and must not have been started again afterwards, and the tables must be bit-identical to those of an
undisturbed search that ran in one process (engine inline). With one worker, TPE and early stopping are reproducible, so
the suggestions and their order must be equal too.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import psutil
from helpers import command, finished_levels

from ticket_search import load_results
from ticket_search.results.events import read_events

TABLES = ("levels", "trajectories", "curves", "layers")
#: The columns that may differ between two runs of the same search, because they contain training times.
CLOCK = ["train_seconds"]
#: The kinds of process to kill, drawn uniformly; "group" means all processes. Workers are listed three times because
#: about half of these draws kill nothing: no worker is running yet.
VICTIMS = {
    "ray": ("driver", "worker", "worker", "worker", "raylet", "group"),
    "processes": ("driver", "worker", "worker", "worker", "group"),
}
#: Text that occurs in the process name (Ray) or the command line (processes) of every worker.
_WORKERS = {"ray": "ray::Trajectory", "processes": "ticket_search.engines.worker_main"}
#: The shortest and longest wait before a kill, in seconds. The first level takes about 8 s (Ray) or 5 s (processes).
_WINDOWS = {"ray": (1.0, 16.0), "processes": (0.5, 10.0)}
#: The maximum number of kills per search when this file runs as a script, so that the script runs several searches.
_KILLS_A_SEARCH = 20
#: How many times faster the executor ``sparse`` trains the network below than ``plain``.
_FASTER = 6
_COMMON = """
name: ballistic
dataset: {name: digits, validation: 300}
model: {name: lenet_100}
training:
  optimizer: {name: sgd, lr: 0.05, momentum: 0.9}
  batch_size: 64
  iterations: ITERATIONS
  evaluate_every: 50
  executor: EXECUTOR
pruning: {max_levels: 3}
seeds: [0, 1, 2]
"""
#: Two workers finish levels in any order. TPE and early stopping depend on the order, so this search uses neither.
TWO_WORKERS = """
space: {pruning_rate: RATES, rewind_iteration: [0, 20]}
search: {trials: null, sampler: grid, early_stopping: null, checkpoint_seconds: 0.2, max_failures: 1000}
"""
ONE_WORKER = """
space: {pruning_rate: {low: 0.2, high: 0.8}, strategy: [layerwise, global], rewind_iteration: [0, 20]}
search: {trials: TRIALS, sampler: tpe, max_concurrent: 1, checkpoint_seconds: 0.2, max_failures: 1000}
"""


@dataclass
class Tally:
    """Counts of what happened in one or more searches whose processes were killed.

    Attributes:
        kills: the number of kills by kind of victim (see `VICTIMS`).
        starts: the number of times the driver was started.
        levels: the number of distinct levels trained.
        continued: the number of training runs that were resumed from a checkpoint.
        lost: the number of finished levels that were trained again.
    """

    kills: Counter = field(default_factory=Counter)
    starts: int = 0
    levels: int = 0
    continued: int = 0
    lost: int = 0


def make_space(one_worker, *, iterations, size):
    """Return a search as YAML.

    Args:
        one_worker: whether the search uses TPE, one worker and the executor ``sparse`` instead of a grid, two workers
            and the executor ``plain``.
        iterations: the iterations of a level of ``plain``. Levels of ``sparse`` have `_FASTER` times as many, so that
            they take about as long.
        size: the number of trials (one worker) or of pruning rates (two workers).
    """
    rates = [round(0.2 + 0.6 * i / size, 3) for i in range(size)]
    text = _COMMON + (ONE_WORKER if one_worker else TWO_WORKERS)
    text = text.replace("ITERATIONS", str(iterations * _FASTER if one_worker else iterations))
    text = text.replace("EXECUTOR", "sparse" if one_worker else "plain")
    return text.replace("TRIALS", str(size)).replace("RATES", str(rates))


def bombard(space, run_dir, kills, chooser, *, engine="ray", window=None, log=None):
    """Run a search to its end while killing up to `kills` of its processes; return a `Tally`."""
    tally = Tally()
    while True:
        tally.starts += 1
        with tempfile.TemporaryFile("w+") as said:
            driver = subprocess.Popen(
                command("run", space, "--output", run_dir, "--engine", engine),
                start_new_session=True,
                stdout=said,
                stderr=subprocess.STDOUT,
                text=True,
            )
            try:
                code = _bombard_one(driver, kills, chooser, engine, window or _WINDOWS[engine], tally, log)
            finally:
                _end_group(driver.pid)
            said.seek(0)
            assert code in (0, 1, -signal.SIGKILL), said.read()[-3000:]
        if code == 0:
            return tally


def _bombard_one(driver, kills, chooser, engine, window, tally, log):
    """Kill processes until the driver exits or no kills are left; wait for the driver and return its exit code."""
    while tally.kills.total() < kills:
        try:
            return driver.wait(chooser.uniform(*window))
        except subprocess.TimeoutExpired:
            victim = shoot(driver, chooser.choice(VICTIMS[engine]), chooser, engine)
        if victim is not None:
            tally.kills[victim] += 1
            if log:
                log(f"start {tally.starts}: killed the {victim}, kill {tally.kills.total()}")
        if victim in ("driver", "group", "raylet"):
            return driver.wait(60)  # a driver that loses its raylet must exit by itself
    return driver.wait(900)


def shoot(driver, victim, chooser, engine="ray"):
    """Send SIGKILL to a process of the kind `victim`. Return the kind, or None if no such process is running."""
    try:
        family = psutil.Process(driver.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return None
    if victim == "group":
        os.killpg(driver.pid, signal.SIGKILL)
        for process in family:
            _kill(process)
        return victim
    if victim == "driver":
        driver.kill()
        return victim
    name = "raylet" if victim == "raylet" else _WORKERS[engine]
    targets = [process for process in family if name in _name(process)]
    return victim if targets and _kill(chooser.choice(targets)) else None


def _name(process):
    try:
        return " ".join([process.name(), *process.cmdline()])
    except psutil.NoSuchProcess:
        return ""


def _kill(process):
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return False
    return True


def _end_group(pid):
    """Kill the remaining processes of the driver's group. Ray's agents outlive a killed raylet and would pile up."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def check(run_dir, alone, tally, *, one_worker):
    """Assert that a killed and resumed search lost no level and has the same results as an undisturbed one."""
    results, expected = load_results(run_dir), load_results(alone)
    assert set(results.trajectories["status"]) <= {"completed", "stopped"}
    assert not results.levels.duplicated(["trajectory_id", "level"]).any()
    # If two workers need the same level, timing decides which worker trains it and which worker reuses it.
    skip = CLOCK if one_worker else [*CLOCK, "reused"]
    for table in TABLES:
        mine, theirs = (getattr(r, table).drop(columns=skip, errors="ignore") for r in (results, expected))
        pd.testing.assert_frame_equal(mine, theirs, check_exact=True)
    if one_worker:
        assert _suggestions(run_dir) == _suggestions(alone)
    events = read_events(run_dir)
    finished = finished_levels(run_dir)
    assert set(finished) == set(results.levels["level_key"])
    tally.levels = len(finished)
    tally.continued += sum(event["event"] == "level_continued" for event in events)
    tally.lost = sum(finished.values()) - len(finished)
    assert tally.lost == 0, [key for key, count in finished.items() if count > 1]
    done = {event["level_key"]: event["time"] for event in events if event["event"] == "level_finished"}
    late = [e for e in events if e["event"] == "level_started" and e["time"] > done[e["level_key"]]]
    assert late == []
    leftovers = [path for path in Path(run_dir).rglob("*") if path.parent.name in ("checkpoints", "damaged", "leases")]
    assert leftovers == []


def _suggestions(run_dir):
    return [json.loads(line) for line in (Path(run_dir) / "suggestions.jsonl").read_text().splitlines()]


def run_alone(space, run_dir):
    """Run the search undisturbed in one process; return its run directory."""
    run = command("run", space, "--output", run_dir, "--engine", "inline")
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return run_dir


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--engine", choices=[*VICTIMS], action="append", help="default: all")
    parser.add_argument("--seed", type=int, default=0, help="seed for the moments and the victims")
    arguments = parser.parse_args()
    sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
    from machine import describe as describe_machine

    say(describe_machine("torch", "ray", "optuna", "pyarrow"))
    chooser = random.Random(arguments.seed)
    total, started, number = Tally(), time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder:
        searches = {}
        for one_worker, size in ((False, 5), (True, 15)):
            space = Path(folder) / f"space{size}.yaml"
            space.write_text(make_space(one_worker, iterations=2000, size=size))
            searches[one_worker] = space, run_alone(space, Path(folder) / f"alone{size}")
            say(f"the search with {'one worker' if one_worker else 'two workers'} has run undisturbed")
        engines = arguments.engine or [*VICTIMS]
        while total.kills.total() < arguments.kills:
            one_worker, engine = number % 2 == 1, engines[number // 2 % len(engines)]
            space, alone = searches[one_worker]
            run_dir = Path(folder) / f"killed{number}"
            kills = min(_KILLS_A_SEARCH, arguments.kills - total.kills.total())
            tally = bombard(space, run_dir, kills, chooser, engine=engine, log=say)
            check(run_dir, alone, tally, one_worker=one_worker)
            say(f"search {number} ({engine}, {'one worker' if one_worker else 'two workers'}): {describe(tally)}")
            total.kills += tally.kills
            for name in ("starts", "levels", "continued", "lost"):
                setattr(total, name, getattr(total, name) + getattr(tally, name))
            number += 1
            say(f"so far, in {time.monotonic() - started:.0f} s: {describe(total)}")
            shutil.rmtree(run_dir)
    say(f"in all, {number} searches in {time.monotonic() - started:.0f} s: {describe(total)}")


def describe(tally):
    hits = ", ".join(f"{count} {name}" for name, count in sorted(tally.kills.items()))
    return (
        f"{tally.kills.total()} kills ({hits}), {tally.starts} starts, {tally.levels} levels trained, "
        f"{tally.continued} times from a checkpoint, {tally.lost} levels lost"
    )


def say(line):
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
