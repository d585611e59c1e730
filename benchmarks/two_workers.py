"""Measure the speedup from a second worker by running the same search alternately with one worker and with two.

Each measurement runs the whole command in a new directory, so it includes the time to start and stop Ray. The sampler
is random and there is no early stopping, so both searches train the same levels. Trajectories with the same seed share
a dense network.

    python benchmarks/two_workers.py         # half an hour on two idle cores: five minutes per pair of runs
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import describe

from ticket_search import load_results

SETTINGS = {
    "search.sampler": "random",
    "search.early_stopping": "null",
    "pruning.max_levels": 3,
    "resources.cpus": 1,
}


def run(trials: int, iterations: int, workers: int) -> tuple[float, int]:
    """Run the command; return how many seconds it took and how many levels it trained."""
    settings = SETTINGS | {"search.max_concurrent": workers, "training.iterations": iterations}
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        command = [sys.executable, "-m", "ticket_search.cli", "run", "digits", "--trials", str(trials)]
        command += [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
        started = time.perf_counter()
        subprocess.run([*command, "--output", str(output)], check=True, capture_output=True)
        wall = time.perf_counter() - started
        return wall, int((~load_results(output).levels["reused"]).sum())


def main() -> None:
    """Run the benchmark and print the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    print(describe("ray", "torch"))
    print(f"{arguments.trials} trajectories of 4 levels of {arguments.iterations} iterations on the digits")
    ratios = []
    for _ in range(arguments.repeats):
        walls, levels = zip(*(run(arguments.trials, arguments.iterations, workers) for workers in (1, 2)), strict=True)
        assert len(set(levels)) == 1, levels
        ratios.append(walls[0] / walls[1])
        print(
            f"{levels[0]} levels: one {walls[0]:.1f} s, two {walls[1]:.1f} s, throughput x{ratios[-1]:.2f}", flush=True
        )
    print(
        f"throughput of two over one: median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to "
        f"{max(ratios):.2f}, n = {len(ratios)}"
    )


if __name__ == "__main__":
    main()
