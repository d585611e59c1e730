"""Measure how much slower a training iteration of LeNet-300-100 on MNIST is than its bare arithmetic.

All variants run in this process, in alternating blocks, with the same optimizer, on one thread. "bare" is the forward
pass, backward pass and update on one fixed batch. "level 0" and "level n" use the training loop of a search, with data
order, normalization, learning-rate schedule and dropout seeding, but without evaluation; "level n" also applies a mask.

    python benchmarks/iteration.py --data-dir DIR
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import describe
from torch.nn.functional import cross_entropy

from ticket_search.config.trajectory import DatasetSpec, ModelSpec, OptimizerSpec, TrainingSpec
from ticket_search.data.dataset import load_dataset
from ticket_search.models import build, prunable
from ticket_search.pruning.masks import full_mask
from ticket_search.tasks.images import ImageTask
from ticket_search.training.lane import PlainLane
from ticket_search.training.request import LevelInputs, TrainRequest

BATCH, BLOCK, BLOCKS = 128, 200, 30


def seconds(run: Callable[[int], object]) -> float:
    """Return the mean time per iteration over a block, in seconds."""
    started = time.perf_counter()
    for iteration in range(BLOCK):
        run(iteration)
    return (time.perf_counter() - started) / BLOCK


def main() -> None:
    """Run the benchmark and print the measurements."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", type=Path, required=True)
    data_dir = parser.parse_args().data_dir
    torch.set_num_threads(1)
    data = load_dataset(DatasetSpec(name="mnist", validation=5000), data_dir)
    model, optimizer = ModelSpec(name="lenet_300_100"), OptimizerSpec(name="adam", lr=1.2e-3)
    training = TrainingSpec(optimizer=optimizer, batch_size=BATCH, iterations=20000, evaluate_every=100)

    bare = build(model, data.image_shape, data.classes, seed=0)
    updates = torch.optim.Adam(bare.parameters(), lr=1.2e-3, fused=True)
    images, labels = data.stream(0, BATCH).batch(0)

    def arithmetic(_: int) -> None:
        updates.zero_grad(set_to_none=True)
        cross_entropy(bare(images), labels).backward()
        updates.step()

    def engine(*, masked: bool) -> PlainLane:
        network = build(model, data.image_shape, data.classes, seed=0)
        weights = network.state_dict()
        mask = full_mask(weights, prunable(network)) if masked else {}
        level = LevelInputs(weights=weights, mask=mask, seed=0)
        return PlainLane(TrainRequest(level=level, network=network, task=ImageTask(data), training=training, key=""))

    rows = {"bare": arithmetic, "level 0": engine(masked=False), "level n": engine(masked=True)}
    for run in rows.values():
        seconds(run)
    measured: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(BLOCKS):
        for name, run in rows.items():
            measured[name].append(seconds(run))
    print(describe("torch"))
    print(
        f"LeNet-300-100, MNIST, batch {BATCH}, fused Adam, 1 thread; {BLOCKS} alternating blocks of {BLOCK} iterations"
    )
    print(f"{'':<8} {'ms: median':>11} {'min':>7} {'max':>7}   {'ratio to bare: median':>22} {'min':>6} {'max':>6}")
    for name, times in measured.items():
        ratios = [t / b for t, b in zip(times, measured["bare"], strict=True)]
        ms = [1e3 * t for t in times]
        print(
            f"{name:<8} {statistics.median(ms):>11.3f} {min(ms):>7.3f} {max(ms):>7.3f}   "
            f"{statistics.median(ratios):>22.3f} {min(ratios):>6.3f} {max(ratios):>6.3f}"
        )


if __name__ == "__main__":
    main()
