"""The floating-point precision of forward passes."""

import torch

from ticket_search.config.trajectory import Precision


def arithmetic(precision: Precision, device: torch.device) -> torch.autocast:
    """Return the context manager for a forward pass; for bf16, torch's autocast chooses which operations use it."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
