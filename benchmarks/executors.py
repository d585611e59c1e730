"""Compare the cost of training with executor `sparse` with that of executor `plain`.

    python benchmarks/executors.py iteration --data-dir DIR           # 3 min; DIR contains MNIST/raw
    python benchmarks/executors.py losses --data-dir DIR              # 10 s
    python benchmarks/executors.py trajectory --data-dir DIR          # 5 min
    python benchmarks/executors.py science benchmarks/mnist_lenet benchmarks/mnist_lenet_sparse
    python benchmarks/executors.py convolutions --data-dir DIR        # 2 min; DIR contains cifar10-jpeg
    python benchmarks/executors.py stacked --device cpu               # 3 min
    python benchmarks/executors.py digits --other CHECKOUT            # 10 min; e.g. of commit caeb213
    python benchmarks/executors.py openlth --openlth CHECKOUT --data-dir DIR      # 10 min

Everything that is compared runs alternately. `digits` runs whole commands on both cores; the others use one thread.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from machine import describe

DENSITIES = (1.0, 0.55, 0.33, 0.2, 0.1, 0.05, 0.01)
BLOCK, BLOCKS = 100, 15
#: Twenty levels of the paper's trajectory: 20% of the weights are pruned at each level, 10% in the output layer.
LEVELS, RATE = 20, 0.2
EXECUTORS = ("plain", "sparse")

Lane = Callable[[int], Any]


def lane(data: Any, executor: str, model: str, density: float, batch_size: int, optimizer: dict[str, Any]) -> Lane:
    """Return a lane that trains a network with a random mask of the given density in every prunable layer."""
    from ticket_search.training.executors.sparse import sparse_lane
    from ticket_search.training.lane import PlainLane

    made = request(data, model, density, batch_size, optimizer)
    return PlainLane(made) if executor == "plain" else sparse_lane(made)


def request(data: Any, model: str, density: float, batch_size: int, optimizer: dict[str, Any]) -> Any:
    """Return the request to train such a network, which never evaluates it."""
    import torch

    from ticket_search.config.base import validate
    from ticket_search.config.trajectory import ModelSpec, TrainingSpec
    from ticket_search.models import build, prunable
    from ticket_search.pruning.masks import apply_mask
    from ticket_search.tasks.images import ImageTask
    from ticket_search.training.request import LevelInputs, TrainRequest

    torch.set_num_threads(1)
    fields = {"optimizer": optimizer, "batch_size": batch_size, "iterations": 10**6, "evaluate_every": 10**6}
    network = build(ModelSpec(name=model), data.image_shape, data.classes, seed=0).to(data.train.labels.device)
    weights, generator = network.state_dict(), torch.Generator().manual_seed(0)
    names = prunable(network) if density < 1 else ()
    mask = {name: torch.rand(weights[name].shape, generator=generator) < density for name in names}
    return TrainRequest(
        level=LevelInputs(weights=apply_mask(mask, weights), mask=mask, seed=0),
        network=network,
        task=ImageTask(data),
        training=validate(TrainingSpec, fields),
        key="",
    )


def milliseconds(run: Lane, block: int = BLOCK) -> float:
    """Return the CPU time per iteration over a block, in milliseconds."""
    started = time.process_time()
    for iteration in range(block):
        run(iteration)
    return 1e3 * (time.process_time() - started) / block


def alternate(runs: dict[str, Lane], block: int, blocks: int) -> dict[str, list[float]]:
    """Return the milliseconds per iteration of alternating blocks, after one block that is not counted."""
    measured: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(blocks + 1):
        for name, run in runs.items():
            taken = milliseconds(run, block)
            if number:
                measured[name].append(taken)
    return measured


def spread(values: Iterable[float], digits: int = 3) -> str:
    """Return the median, minimum and maximum."""
    values = list(values)
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def iteration(arguments: argparse.Namespace) -> None:
    """Measure an iteration of LeNet-300-100 on MNIST at several densities."""
    data = load(arguments.data_dir, name="mnist", validation=5000)
    optimizer = {"name": "adam", "lr": 1.2e-3}
    first = ("plain", 1.0)
    kinds = [first, ("plain", 0.1), *(("sparse", density) for density in DENSITIES)]
    runs = {f"{name} {density:g}": lane(data, name, "lenet_300_100", density, 60, optimizer) for name, density in kinds}
    print(describe("torch", "numba"))
    print(
        f"LeNet-300-100, MNIST, batch 60, Adam, 1 thread; {BLOCKS} alternating blocks of {BLOCK} iterations; CPU time"
    )
    report(alternate(runs, BLOCK, BLOCKS), "plain 1")


def convolutions(arguments: argparse.Namespace) -> None:
    """Measure an iteration of Conv-2 on CIFAR-10 at several densities."""
    data = load(arguments.data_dir, name="parquet", path="cifar10-jpeg", validation=5000)
    optimizer = {"name": "adam", "lr": 2e-4}
    kinds = [(name, density) for density in (1.0, 0.05, 0.01) for name in ("plain", "sparse")]
    runs = {f"{name} {density:g}": lane(data, name, "conv2", density, 60, optimizer) for name, density in kinds}
    print(describe("torch", "numba"))
    print("Conv-2, CIFAR-10 (JPEG), batch 60, Adam, 1 thread; 7 alternating blocks of 10 iterations; CPU time")
    report(alternate(runs, 10, 7), "plain 1")


def losses(arguments: argparse.Namespace) -> None:
    """Compare the losses of the first 100 iterations of LeNet-300-100 on MNIST, from the same start."""
    import torch

    data = load(arguments.data_dir, name="mnist", validation=5000)
    print(describe("torch", "numba"))
    print(
        "LeNet-300-100, MNIST, batch 60, Adam: highest difference between losses of plain and sparse in 100 iterations"
    )
    for density in DENSITIES:
        pair = [lane(data, name, "lenet_300_100", density, 60, {"name": "adam", "lr": 1.2e-3}) for name in EXECUTORS]
        one, other = (torch.stack([run(iteration) for iteration in range(100)]) for run in pair)
        highest = float((one - other).abs().max())
        print(f"density {density:<5g} {highest:.1e} nats, of losses from {one[0]:.2f} to {one[-1]:.2f}")


def science(arguments: argparse.Namespace) -> None:
    """Compare the results of the same search with both executors, paired by seed."""
    import numpy as np

    from ticket_search import load_results
    from ticket_search.analysis.comparison import interval

    plain, sparse = (load_results(folder).levels for folder in (arguments.plain, arguments.sparse))
    both = plain.merge(sparse, on=["seed", "level"], suffixes=("_plain", "_sparse"))
    assert len(both) == len(plain) == len(sparse)
    both["difference"] = 100 * (both["test_accuracy_sparse"] - both["test_accuracy_plain"])
    print(
        f"{both['seed'].nunique()} seeds; sparse minus plain, test accuracy in points, mean and 95% interval over seeds"
    )
    outside = 0
    for level, rows in both.groupby("level"):
        mean, low, high = interval(rows["difference"])
        outside += not low <= 0 <= high
        among = 100 * rows["test_accuracy_plain"].std()
        density = rows["density_plain"].iloc[0]
        found = f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"
        print(f"level {level:2d}, density {density:.3f}: {found}; plain, std over seeds {among:.3f}")
    print(f"intervals without 0: {outside} of {both['level'].nunique()}")
    mean, low, high = interval(both.groupby("seed")["difference"].mean())
    print(f"mean over all levels: {mean:+.3f} ({low:+.3f} to {high:+.3f})")
    ratios = np.log2(_sparsest(sparse) / _sparsest(plain))
    mean, low, high = interval(ratios)
    found = f"{mean:+.2f} ({low:+.2f} to {high:+.2f}), by seed {ratios.round(2).tolist()}"
    print(f"log2 of the ratio of sparsest matching densities: {found}")
    print(f"plain, std over seeds of log2 of that density: {np.log2(_sparsest(plain)).std():.2f}")


def _sparsest(levels: Any) -> Any:
    return levels[levels["matching"]].groupby("seed")["density"].min()


def stacked(arguments: argparse.Namespace) -> None:
    """Measure an iteration of one level in stacks of several widths, on random images."""
    import torch

    from ticket_search.training.determinism import reproducible

    print(describe("torch"))
    networks = [("lenet_60_30", (1, 8, 8), 32), ("lenet_300_100", (1, 28, 28), 60)]
    if arguments.device != "cpu":
        print(name_of_gpu())
        networks += [("conv2", (3, 32, 32), 60), ("resnet20", (3, 32, 32), 128)]
    print(f"Adam, density 0.1, random images, {arguments.device}; wall-clock time; 7 alternating blocks of 50 updates")
    for model, shape, batch_size in networks:
        data = random_images(shape, arguments.device)
        runs = {"plain": plain_lane(data, model, batch_size)}
        runs |= {f"{width} lanes": stack(data, model, batch_size, width) for width in (1, 4, 16, 32, 64)}
        print(f"{model}, images of {shape}, batch {batch_size}")
        with reproducible(torch.device(arguments.device)):
            measured = together(runs, arguments.device)
        for name, times in measured.items():
            width = 1 if name == "plain" else int(name.split()[0])
            each = [t / width for t in times["own"]]
            ratios = [one / other for one, other in zip(each, times["plain"], strict=True)]
            print(f"  {name:<9} {spread(each):>26} ms per level and iteration, {spread(ratios)} of plain")


def name_of_gpu() -> str:
    """Return the name of the GPU and the version of CUDA."""
    import torch

    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"


def random_images(shape: tuple[int, int, int], device: str) -> Any:
    """Return a data set of random images on a device."""
    import numpy as np

    from ticket_search.config.trajectory import DatasetSpec
    from ticket_search.data.arrays import Arrays
    from ticket_search.data.dataset import make_dataset

    generator, count = np.random.default_rng(0), 4000
    images, labels = generator.integers(0, 256, (count, *shape), dtype=np.uint8), generator.integers(0, 10, count)
    arrays = Arrays(train_images=images, train_labels=labels, test_images=images, test_labels=labels, classes=10)
    return make_dataset(DatasetSpec(name="digits", validation=100), arrays, device)


def plain_lane(data: Any, model: str, batch_size: int) -> Lane:
    """Return a plain lane."""
    return lane(data, "plain", model, 0.1, batch_size, {"name": "adam", "lr": 1.2e-3})


def stack(data: Any, model: str, batch_size: int, width: int) -> Lane:
    """Return a function that makes one update of every level of a stack."""
    from ticket_search.training.executors.stacked import StackedExecutor

    executor = StackedExecutor()
    for _ in range(width):
        executor.submit(request(data, model, 0.1, batch_size, {"name": "adam", "lr": 1.2e-3}))
    return lambda _: executor.update()


def together(runs: dict[str, Lane], device: str) -> dict[str, dict[str, list[float]]]:
    """Return the milliseconds per call of each function and of `plain`, measured in alternating blocks."""
    import torch

    wait = torch.cuda.synchronize if device != "cpu" else (lambda: None)
    measured: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(8):
        for name, run in runs.items():
            wait()
            started = time.perf_counter()
            for iteration in range(50):
                run(iteration)
            wait()
            if number:
                measured[name].append(1e3 * (time.perf_counter() - started) / 50)
    return {name: {"own": times, "plain": measured["plain"]} for name, times in measured.items()}


def report(measured: dict[str, list[float]], base: str) -> None:
    """Print a table of times and of ratios to the row `base` in the same round."""
    print(f"{'executor, density':<18} {'ms an iteration: median (range)':>32}   ratio to {base}: median (range)")
    for name, times in measured.items():
        ratios = [one / other for one, other in zip(times, measured[base], strict=True)]
        print(f"{name:<18} {spread(times):>32}   {spread(ratios)}")


def load(data_dir: Path, **fields: Any) -> Any:
    """Load a data set."""
    from ticket_search.config.trajectory import DatasetSpec
    from ticket_search.data.dataset import load_dataset

    return load_dataset(DatasetSpec(**fields), data_dir)


def trajectory(arguments: argparse.Namespace) -> None:
    """Measure whole trajectories, with evaluation, as the search `mnist_lenet` trains them."""
    print(describe("torch", "numba"))
    print(
        f"LeNet-300-100, MNIST, batch 60, Adam, evaluation every 100 iterations; {LEVELS + 1} levels of "
        f"{arguments.iterations} iterations, {RATE:.0%} pruned at each; inline, 1 thread"
    )
    ratios = {"training and evaluation": [], "whole command": []}
    for number in range(arguments.repeats):
        seconds = {name: mnist(arguments, name, number) for name in ("plain", "sparse")}
        for place, name in enumerate(ratios):
            ratios[name].append(seconds["sparse"][place] / seconds["plain"][place])
        print(
            *(
                f"{name}: training and evaluation {s:.1f} s, whole command {w:.1f} s"
                for name, (s, w) in seconds.items()
            ),
            sep="; ",
            flush=True,
        )
    for name, values in ratios.items():
        print(f"{name}: sparse takes {spread(values)} of plain, n = {len(values)}")


def mnist(arguments: argparse.Namespace, executor: str, seed: int) -> tuple[float, float]:
    """Run one trajectory; return the seconds of training and evaluation, and those of the whole command."""
    from ticket_search import load_results

    settings = {
        "training.iterations": arguments.iterations,
        "training.executor": executor,
        "pruning.max_levels": LEVELS,
        "pruning.min_density": 0.001,
        "space": f"{{pruning_rate: [{RATE}]}}",
        "seeds": f"[{seed}]",
        "search": "{sampler: grid, trials: null, early_stopping: null}",
    }
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        started = time.perf_counter()
        search(Path(__file__).parent.parent, "mnist_lenet", output, settings, arguments.data_dir, "inline")
        wall = time.perf_counter() - started
        levels = load_results(output).levels
        assert len(levels) == LEVELS + 1, len(levels)
        return float(levels["train_seconds"].sum()), wall


def search(
    checkout: Path,
    space: str,
    output: Path,
    settings: dict[str, Any],
    data_dir: Path | None = None,
    engine: str = "ray",
) -> None:
    """Run the command of a checkout."""
    command = [sys.executable, "-m", "ticket_search.cli", "run", space, "--output", str(output)]
    command += ["--engine", engine] if engine != "ray" else []  # which earlier versions do not know
    command += ["--data-dir", str(data_dir.resolve())] if data_dir else []
    command += [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    environment = {"PYTHONPATH": str(checkout.resolve()), "RAY_USAGE_STATS_ENABLED": "0"}
    subprocess.run(command, check=True, capture_output=True, cwd=checkout, env={**os.environ, **environment})


def digits(arguments: argparse.Namespace) -> None:
    """Compare the search `digits` of this checkout with that of another one."""
    import pandas as pd

    print(describe("ray", "torch", "numba"))
    print(
        "search digits, as it ships, but with random points and no early stopping, so that both train the same points"
    )
    rates: dict[str, list[float]] = {"here": [], "other": []}
    checkouts = {"here": Path(__file__).parent.parent, "other": arguments.other}
    settings = {"search.sampler": "random", "search.early_stopping": "null"}
    for _ in range(arguments.repeats):
        for name, checkout in checkouts.items():
            with tempfile.TemporaryDirectory() as folder:
                output = Path(folder) / "run"
                started = time.perf_counter()
                search(checkout, "digits", output, settings, engine=arguments.engine)
                hours = (time.perf_counter() - started) / 3600
                rates[name].append(len(pd.read_parquet(output / "trajectories")) / hours)
        print({name: round(values[-1]) for name, values in rates.items()}, "trajectories an hour", flush=True)
    ratios = [here / other for here, other in zip(rates["here"], rates["other"], strict=True)]
    print(f"ratio: {spread(ratios, 2)}, n = {len(ratios)}")


def openlth(arguments: argparse.Namespace) -> None:
    """Compare whole trajectories at batch 128 with those of OpenLTH, whose cost does not depend on the density."""
    block, blocks = 100, 5
    print(describe("torch", "torchvision", "numba"))
    print(f"LeNet-300-100, MNIST, batch 128, SGD, 1 thread; {blocks} alternating rounds of {block} iterations a level")
    means: dict[str, list[float]] = {
        "two workers here": [],
        "one process of OpenLTH": [],
        "two processes of OpenLTH": [],
    }
    with ProcessPoolExecutor(1) as one, ProcessPoolExecutor(1) as other:
        workers = (one, other)
        for _ in range(blocks):
            theirs = one.submit(_openlth_seconds, arguments.openlth, arguments.data_dir, block).result()
            means["one process of OpenLTH"].append(theirs)
            both = [w.submit(_openlth_seconds, arguments.openlth, arguments.data_dir, block) for w in workers]
            means["two processes of OpenLTH"].append(statistics.mean(f.result() for f in both) / 2)
            both = [w.submit(_our_seconds, arguments.data_dir, block) for w in workers]
            means["two workers here"].append(statistics.mean(f.result() for f in both) / 2)
    for name, values in means.items():
        print(f"{name:<25} {spread(1e3 * v for v in values)} ms per iteration of a trajectory's mean level")
    for name in list(means)[1:]:
        ratios = [t / o for t, o in zip(means[name], means["two workers here"], strict=True)]
        print(f"two workers here train {spread(ratios, 1)} times the trajectories of {name}")


_LANES: dict[float, Lane] = {}


def _our_seconds(data_dir: Path, block: int) -> float:
    """Return the mean seconds per iteration over all levels of a trajectory."""
    if not _LANES:
        data = load(data_dir, name="mnist", validation=5000)
        for level in range(LEVELS + 1):
            density = (1 - RATE) ** level
            _LANES[density] = lane(data, "sparse", "lenet_300_100", density, 128, {"name": "sgd", "lr": 0.1})
        for run in _LANES.values():
            milliseconds(run, 5)
    started = time.perf_counter()
    for run in _LANES.values():
        for number in range(block):
            run(number)
    return (time.perf_counter() - started) / (block * len(_LANES))


_OPENLTH: list[Callable[[], None]] = []


def _openlth_seconds(checkout: Path, data_dir: Path, block: int) -> float:
    """Return OpenLTH's mean seconds per iteration."""
    import warnings

    import openlth as theirs
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore", DeprecationWarning)
    theirs.BLOCK = block
    if not _OPENLTH:
        _OPENLTH.append(theirs.openlth(checkout.resolve(), data_dir))
        _OPENLTH[0]()
    started = time.perf_counter()
    _OPENLTH[0]()
    return (time.perf_counter() - started) / block


def main() -> None:
    """Run a benchmark and print the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for run in (iteration, losses, trajectory, science, convolutions, stacked, digits, openlth):
        command = commands.add_parser(run.__name__, help=(run.__doc__ or "").splitlines()[0])
        command.set_defaults(run=run)
        if run is digits:
            command.add_argument("--other", type=Path, required=True, help="a checkout to compare with")
            command.add_argument("--engine", default="ray")
        elif run is science:
            command.add_argument("plain", type=Path, help="a run directory")
            command.add_argument("sparse", type=Path, help="a run directory")
        elif run is stacked:
            command.add_argument("--device", default="cpu")
        else:
            command.add_argument("--data-dir", type=Path, required=True)
        if run is openlth:
            command.add_argument("--openlth", type=Path, required=True, help="a checkout of OpenLTH")
        if run is trajectory:
            command.add_argument("--iterations", type=int, default=1000)
        if run in (trajectory, digits):
            command.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
