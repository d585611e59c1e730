"""Compare the time per training iteration with that of OpenLTH, by the authors of the lottery ticket hypothesis.

Both packages train LeNet-300-100 on MNIST in this process, in alternating blocks, on one thread, with SGD at a learning
rate of 0.1, batches of 128, and data already in memory. This package uses the training loop of a search; OpenLTH uses
its own `training.train`, loader and transforms. Neither training loop evaluates the network. OpenLTH, whose last commit
is from May 2020, passes an argument that Pillow 11.3 deprecates, so deprecation warnings are ignored.

    git clone https://github.com/facebookresearch/open_lth
    python benchmarks/openlth.py --openlth open_lth --data-dir DIR     # DIR contains MNIST/raw; takes 2 min
"""

import argparse
import gzip
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from machine import describe

from ticket_search.config.trajectory import DatasetSpec, ModelSpec, OptimizerSpec, TrainingSpec
from ticket_search.data.dataset import load_dataset
from ticket_search.models import build
from ticket_search.tasks.images import ImageTask
from ticket_search.training.lane import PlainLane
from ticket_search.training.request import LevelInputs, TrainRequest

BATCH, BLOCK, BLOCKS = 128, 200, 15


def ours(data_dir: Path) -> Callable[[], None]:
    """Return a function that trains for a block of iterations with the training loop of a search."""
    data = load_dataset(DatasetSpec(name="mnist", validation=5000), data_dir)
    network = build(ModelSpec(name="lenet_300_100"), data.image_shape, data.classes, seed=0)
    training = TrainingSpec(
        optimizer=OptimizerSpec(name="sgd", lr=0.1), batch_size=BATCH, iterations=20000, evaluate_every=100
    )
    level = LevelInputs(weights=network.state_dict(), mask={}, seed=0)
    lane = PlainLane(TrainRequest(level=level, network=network, task=ImageTask(data), training=training, key=""))
    return lambda: [lane(iteration) for iteration in range(BLOCK)] and None


def openlth(folder: Path, data_dir: Path) -> Callable[[], None]:
    """Return a function that trains for a block of iterations with OpenLTH's training loop."""
    sys.path.insert(0, str(folder))
    # OpenLTH breaks with current torch and NumPy in two places: a class derived from `DistributedDataParallel` has no
    # consistent method resolution order (a single device does not need the class), and `np.product` was renamed.
    torch.nn.parallel.DistributedDataParallel = torch.nn.DataParallel
    np.product = np.prod
    import datasets.registry
    import models.registry
    import platforms.platform
    from foundations.step import Step
    from platforms import base
    from training.train import train

    class Here(base.Platform):
        root = tempfile.mkdtemp()
        dataset_root = tempfile.mkdtemp()
        imagenet_root = None

    raw = Path(Here.dataset_root) / "mnist" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in (data_dir / "MNIST" / "raw").glob("*ubyte*"):  # torchvision expects uncompressed files
        packed = file.read_bytes()
        (raw / file.stem if file.suffix == ".gz" else raw / file.name).write_bytes(
            gzip.decompress(packed) if file.suffix == ".gz" else packed
        )
    platforms.platform._PLATFORM = Here(num_workers=0)
    hparams = models.registry.get_default_hparams("mnist_lenet_300_100")
    loader = datasets.registry.get(hparams.dataset_hparams, train=True)
    model = models.registry.get(hparams.model_hparams, outputs=10)
    end = Step.from_iteration(BLOCK, loader.iterations_per_epoch)
    return lambda: train(hparams.training_hparams, model, loader, tempfile.mkdtemp(), end_step=end)


def milliseconds(run: Callable[[], None]) -> float:
    """Return the mean time per iteration over a block, in milliseconds."""
    started = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - started) / BLOCK


def main() -> None:
    """Run the benchmark and print the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--openlth", type=Path, required=True, help="a checkout of OpenLTH")
    parser.add_argument("--data-dir", type=Path, required=True)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)
    torch.set_num_threads(1)
    runs = {"here": ours(arguments.data_dir), "OpenLTH": openlth(arguments.openlth.resolve(), arguments.data_dir)}
    for run in runs.values():
        run()
    measured = {name: [] for name in runs}
    for _ in range(BLOCKS):
        for name, run in runs.items():
            measured[name].append(milliseconds(run))
    ratios = [theirs / mine for mine, theirs in zip(measured["here"], measured["OpenLTH"], strict=True)]
    print(describe("torch", "torchvision", "Pillow"))
    print(f"LeNet-300-100, MNIST, batch {BATCH}, SGD, 1 thread; {BLOCKS} alternating blocks of {BLOCK} iterations")
    for name, times in measured.items():
        print(f"{name:<8} {statistics.median(times):7.3f} ms an iteration ({min(times):.3f} to {max(times):.3f})")
    print(f"OpenLTH takes {statistics.median(ratios):.2f} times as long ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
