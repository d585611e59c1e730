"""Make results bit-identical from run to run: seed torch's generators, and turn on its deterministic settings."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def seed_generators(device: torch.device, seed: int) -> None:
    """Seed torch's global generators for the CPU and the device."""
    # torch.manual_seed would also seed every other type of device, which takes 0.2 ms, a tenth of an iteration.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Make torch deterministic, and restore the caller's random state and torch's settings afterwards."""
    if device.type != "cuda":
        with torch.random.fork_rng(devices=[]):
            yield
        return
    # This variable is not restored afterwards, because cuBLAS reads it only once per process.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    matmul = torch.backends.cuda.matmul
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    tf32, fill = matmul.allow_tf32, memory.fill_uninitialized_memory
    # Warn instead of raising an error, because CUDA has no deterministic kernel for some operations, such as the
    # gradient of adaptive pooling.
    torch.use_deterministic_algorithms(True, warn_only=True)
    matmul.allow_tf32 = False  # TF32 rounds the inputs of float32 matrix products
    # No code here reads uninitialized memory, and filling it would launch a kernel for every new tensor.
    memory.fill_uninitialized_memory = False
    cudnn = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    try:
        with torch.random.fork_rng(devices=[device]), cudnn:
            yield
    finally:
        matmul.allow_tf32 = tf32
        memory.fill_uninitialized_memory = fill
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
