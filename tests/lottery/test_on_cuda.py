"""Training on a GPU has the same guarantees as on the CPU. Skipped without a GPU."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from ticket_search.config.trajectory import DatasetSpec, ModelSpec
from ticket_search.data.dataset import load_dataset
from ticket_search.lottery.trajectory import run_trajectory
from ticket_search.models import build, prunable
from ticket_search.pruning.masks import full_mask, kept_weights
from ticket_search.store.level_store import LevelStore
from ticket_search.tasks.images import ImageSample, ImageTask
from ticket_search.training import saliency
from ticket_search.training.executors.plain import train
from ticket_search.training.executors.stacked import StackedExecutor
from ticket_search.training.request import LevelInputs, TrainRequest

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(scope="module")
def cuda_digits():
    return ImageTask(load_dataset(DatasetSpec(name="digits", validation=300), Path(), "cuda"))


def figures(levels):
    """Return all fields of the levels except their training times, `reused` flags and controls."""
    return [
        {k: v for k, v in asdict(level).items() if k not in ("train_seconds", "reused", "controls")}
        | {name: {n: t.tolist() for n, t in (getattr(level, name) or {}).items()} for name in ("mask", "next_mask")}
        | {"final_weights": {n: t.tolist() for n, t in level.final_weights.items()}}
        for level in levels
    ]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", ["lenet_30", "conv2", "resnet8"])
@pytest.mark.parametrize("retrain", ["weights", "finetune"])
def test_a_second_run_is_bit_identical(trajectory, cuda_digits, tmp_path, model, precision, retrain):
    spec = trajectory({"model.name": model, "training.precision": precision, "retrain": retrain, "rewind_iteration": 7})
    one, other = (list(run_trajectory(spec, cuda_digits, LevelStore(tmp_path / name))) for name in "ab")
    assert figures(one) == figures(other)
    assert [level.number for level in one] == [0, 1, 2]


@pytest.mark.parametrize("model", ["conv2", "resnet8"])
def test_a_training_run_resumed_from_checkpoints_is_bit_identical(trajectory, cuda_digits, model, tmp_path):
    """Interrupting training after every eighth checkpoint and resuming it from the last one changes no result."""
    training = trajectory().resolve(1137).training
    network = build(ModelSpec(name=model), **cuda_digits.inputs, seed=0).to("cuda")
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    level = LevelInputs(weights=weights, mask=full_mask(weights, prunable(network)), seed=0, keep=(3, 20))
    request = TrainRequest(level=level, network=network, task=cuda_digits, training=training, key="")
    whole = train(request)

    class Interrupted(Exception):
        pass

    class Keeps:
        seconds = 0.0
        state, saved = None, 0

        def load(self):
            return self.state

        def save(self, state):
            self.state, self.saved = state, self.saved + 1
            if self.saved % 8 == 0:
                raise Interrupted

    keeps = Keeps()
    while True:
        try:
            pieces = train(replace(request, checkpoints=keeps))
        except Interrupted:
            continue
        break
    assert keeps.saved == 39
    assert pieces.curve == whole.curve
    assert pieces.test_loss == whole.test_loss
    for one, other in ((pieces.weights, whole.weights), (pieces.kept[20], whole.kept[20])):
        assert all(torch.equal(one[name], other[name]) for name in other)


def test_pruned_weights_are_zero_and_a_ticket_is_the_mask_times_the_rewind_weights(
    trajectory, cuda_digits, tmp_path, bench
):
    bench.task = cuda_digits
    levels = bench.run(trajectory({"model.name": "resnet8", "rewind_iteration": 5}), LevelStore(tmp_path))
    rewind = bench.outputs[0].kept[5]
    for level, given, outputs in zip(levels[1:], bench.inputs[1:], bench.outputs[1:], strict=True):
        for name, kept in level.mask.items():
            assert torch.equal(given[name], rewind[name].cpu() * kept)
            assert not outputs.weights[name][~kept.to("cuda")].any()


@pytest.mark.parametrize("criterion", saliency.CRITERIA)
def test_saliency_equals_that_on_the_cpu(cuda_digits, criterion):
    network = build(ModelSpec(name="resnet8"), **cuda_digits.inputs, seed=0)
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    mask = full_mask(weights, prunable(network))
    images, labels = cuda_digits.data.stream(0, 100).batch(0)
    on_cuda = saliency.saliency(criterion, network.to("cuda"), weights, mask, ImageSample(images, labels), seed=0)
    on_cpu = saliency.saliency(criterion, network.cpu(), weights, mask, ImageSample(images.cpu(), labels.cpu()), seed=0)
    for name, score in on_cpu.items():
        assert torch.allclose(on_cuda[name], score, rtol=1e-2, atol=1e-4 * score.abs().max().item())


@pytest.mark.parametrize("criterion", ["snip", "synflow", "movement"])
def test_other_criteria_reach_their_targets(trajectory, cuda_digits, tmp_path, criterion):
    spec = trajectory({"model.name": "conv2", "criterion": criterion, "strategy": "global", "target_densities": 0.01})
    levels = list(run_trajectory(spec, cuda_digits, LevelStore(tmp_path)))
    total = kept_weights(levels[0].mask)
    assert kept_weights(levels[1].mask) == round(0.01 * total)


def test_controls(trajectory, cuda_digits, tmp_path):
    spec = trajectory({"controls": {"kinds": ["random_reinit", "shuffled_mask"], "levels": [2]}, "max_levels": 2})
    levels = list(run_trajectory(spec, cuda_digits, LevelStore(tmp_path)))
    assert [len(level.controls) for level in levels] == [0, 0, 2]
    for control in levels[2].controls:
        assert kept_weights(control.level.mask) == kept_weights(levels[2].mask)


@pytest.mark.parametrize("model", ["lenet_30", "conv2", "resnet8"])
def test_stacked_levels_have_the_same_bits_in_any_company(trajectory, cuda_digits, model):
    training = trajectory().resolve(1137).training
    made = []
    for seed in range(20):
        network = build(ModelSpec(name=model), **cuda_digits.inputs, seed=seed).to("cuda")
        weights = {name: value.clone() for name, value in network.state_dict().items()}
        level = LevelInputs(weights=weights, mask=full_mask(weights, prunable(network)), seed=seed)
        made.append(TrainRequest(level=level, network=network, task=cuda_digits, training=training, key=""))

    def together(requests):
        executor, outputs = StackedExecutor(), {}
        for request in requests:
            executor.submit(request)
        while len(outputs) < len(requests):
            outputs.update(executor.advance())
        return outputs

    alone = together(made[3:4])[made[3]]
    for neighbors in (made[:5], made[3:], made):
        found = together(neighbors)[made[3]]
        assert found.curve == alone.curve
        assert all(torch.equal(found.weights[name], value) for name, value in alone.weights.items())
    plain = train(made[3])
    assert alone.curve[-1].val_loss == pytest.approx(plain.curve[-1].val_loss, rel=0.05)
