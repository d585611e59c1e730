"""Early-bird, transfer, copies and data splits work on a GPU as they do on the CPU. Skipped without a GPU."""

from pathlib import Path

import pytest
import torch

from ticket_search.config.trajectory import AugmentSpec, DatasetSpec
from ticket_search.data.dataset import load_dataset
from ticket_search.lottery.finished import FinishedTrajectory
from ticket_search.lottery.trajectory import run_trajectory
from ticket_search.store.level_store import LevelStore
from ticket_search.tasks.images import ImageTask

DEVICE = "cuda"
DIGITS = DatasetSpec(name="digits", validation=300)
#: Seven epochs of 17 iterations, enough for the masks of lenet_16 to become stable.
LONG = {"training.iterations": 119, "training.evaluate_every": 50, "pruning_rate": 0.5, "max_levels": 1}
KEY = "0123456789abcdef0123456789abcdef"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(scope="module")
def task():
    return ImageTask(load_dataset(DIGITS, Path(), DEVICE))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_early_bird_ends_the_dense_training_at_the_same_iteration_twice(trajectory, task, tmp_path, precision):
    early = {"early_bird": {"threshold": 0.12, "window": 3}, "training.precision": precision}
    one, other = (list(run_trajectory(trajectory(LONG | early), task, LevelStore(tmp_path / n))) for n in "ab")
    ended = one[0].iterations
    assert 34 <= ended < 119
    assert ended % 17 == 0
    assert one[0].mask_distances == other[0].mask_distances
    assert [level.iterations for level in one] == [level.iterations for level in other] == [ended, 119]
    assert all(torch.equal(one[1].mask[name], kept) for name, kept in other[1].mask.items())


@pytest.mark.parametrize("changes", [{}, {"rewind_iteration": 7, "model.name": "resnet8"}], ids=str)
def test_a_ticket_transferred_to_its_own_data_is_bit_identical(trajectory, task, tmp_path, changes):
    spec = trajectory({"max_levels": 1, "pruning_rate": 0.5, **changes}, seed=1)
    found, store = LevelStore(tmp_path / "found"), LevelStore(tmp_path / "transferred")
    level = list(run_trajectory(spec, task, found))[-1]
    ticket = FinishedTrajectory(spec, task, found).ticket(1, "aa1/1", {"density": 0.5})
    store.save(KEY, ticket.to_entry())
    pruning = type(spec.pruning)(ticket=KEY, rewind_iteration=spec.pruning.rewind_iteration)
    again = list(run_trajectory(ticket.spec.model_copy(update={"pruning": pruning}), task, store))[-1]
    assert again.curve == level.curve
    assert again.figures["test_loss"] == level.figures["test_loss"]
    assert all(torch.equal(again.mask[name], kept) for name, kept in level.mask.items())
    assert all(torch.equal(again.final_weights[name], value) for name, value in level.final_weights.items())


@pytest.mark.parametrize("model", ["lenet_16", "resnet8"])
def test_copies_differ_and_are_the_ends_of_their_line(trajectory, task, tmp_path, model):
    spec, store = (
        trajectory({"pruning_rate": 0.5, "model.name": model, "rewind_iteration": 7}, seed=3),
        LevelStore(tmp_path),
    )
    levels = list(run_trajectory(spec, task, store))
    finished = FinishedTrajectory(spec, task, store)
    one, other = (finished.train_copy(2, copy) for copy in (0, 1))
    assert not all(torch.equal(one.final_weights[name], other.final_weights[name]) for name in levels[2].mask)
    for copy in (one, other):
        assert all(not copy.final_weights[name][~kept].any() for name, kept in levels[2].mask.items())
    line = finished.errors_between(one, other, 5)
    assert [point.position for point in line] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert (line[0].val_error, line[0].test_error) == (1 - one.val_metric, 1 - one.test_metric)
    assert (line[-1].val_error, line[-1].test_error) == (1 - other.val_metric, 1 - other.test_metric)
    assert finished.errors_between(one, other, 5) == line
    again = FinishedTrajectory(spec, task, LevelStore(tmp_path / "anew")).train_copy(0, 0)
    dense = finished.train_copy(0, 0)
    assert all(torch.equal(again.final_weights[name], value) for name, value in dense.final_weights.items())


@pytest.mark.parametrize("augment", [AugmentSpec(), AugmentSpec(crop=2, flip=True)], ids=["plain", "augmented"])
def test_a_split_by_rows_gives_the_batches_of_the_cpu(augment):
    spec = DIGITS.model_copy(update={"augment": augment})
    cpu, gpu = (load_dataset(spec, Path(), device) for device in ("cpu", DEVICE))
    assert gpu.train.rows.device.type == gpu.train.images.device.type == DEVICE
    assert torch.equal(gpu.train.rows.cpu(), cpu.train.rows)
    assert gpu.train.at(torch.tensor([0, 9], device=DEVICE)).tolist() == cpu.train.at(torch.tensor([0, 9])).tolist()
    streams = cpu.stream(seed=0, batch_size=300), gpu.stream(seed=0, batch_size=300)
    batches = [tuple(stream.batch(i) for stream in streams) for i in (0, 2, 5)]
    batches += list(zip(cpu.batches("validation"), gpu.batches("validation"), strict=True))
    for (images, labels), (on_gpu, labels_on_gpu) in batches:
        assert labels_on_gpu.tolist() == labels.tolist()
        assert torch.allclose(on_gpu.cpu(), images, rtol=0, atol=1e-6)
