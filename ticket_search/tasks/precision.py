"""The arithmetic of forward passes."""

import torch

from ticket_search.config.trajectory import Precision


def arithmetic(precision: Precision, device: torch.device) -> torch.autocast:
    """The context of a forward pass; in bf16, torch's autocast chooses which operations take it."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
