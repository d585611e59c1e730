"""The floating-point precision of forward passes."""

import torch

from ticket_search.config.trajectory import Precision


def arithmetic(precision: Precision, device: torch.device) -> torch.autocast:
    """Return the context manager for a forward pass. With bf16, torch decides which operations run in bfloat16."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
