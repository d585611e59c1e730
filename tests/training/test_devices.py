"""Tests for the CUDA settings of training. Only the second test needs a CUDA device."""

import pytest
import torch
from trainings import train_levels

from ticket_search.config.trajectory import OptimizerSpec, TrainingSpec
from ticket_search.training.determinism import reproducible


def test_on_cuda_tf32_is_off_and_deterministic_cudnn_is_on(monkeypatch):
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: torch.no_grad())  # `fork_rng` needs a CUDA device
    matmul = torch.backends.cuda.matmul.allow_tf32
    with reproducible(torch.device("cuda", 0)):
        assert torch.backends.cudnn.enabled
        assert torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.benchmark
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cuda.matmul.allow_tf32 == matmul


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("model", ["lenet_32", "torchvision/resnet18"])
def test_training_twice_on_cuda_is_bit_identical(model):
    from pathlib import Path

    from ticket_search.config.trajectory import DatasetSpec, ModelSpec
    from ticket_search.data.dataset import load_dataset
    from ticket_search.models import build, prunable
    from ticket_search.pruning.masks import full_mask
    from ticket_search.tasks.images import ImageTask
    from ticket_search.training.request import LevelInputs

    data = load_dataset(DatasetSpec(name="digits", validation=300), Path(), "cuda")
    network = build(ModelSpec(name=model), data.image_shape, data.classes, seed=0).to("cuda")
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    training = TrainingSpec(
        optimizer=OptimizerSpec(name="adam", lr=1e-3), batch_size=64, iterations=20, evaluate_every=10
    )
    level = LevelInputs(weights=weights, mask=full_mask(weights, prunable(network)), seed=0)
    one, other = train_levels([level, level], network, ImageTask(data), training)
    assert one.curve == other.curve
    assert all(torch.equal(one.weights[name], other.weights[name]) for name in weights)
