"""A description of the software and hardware that trained a level. The store saves it with the level's figures."""

from typing import Any

import torch

import ticket_search


def trained_with(device: torch.device) -> dict[str, Any]:
    """Return the software versions, the device, and the number of threads that this process uses.

    These values are recorded but are not part of the level key. A level that was trained on other hardware is therefore
    reused, and its row names that hardware. Results may differ in the last bits between devices and thread counts.

    Args:
        device: the device that trains the level.
    """
    return {
        "torch_version": str(torch.__version__),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "ticket_search_version": ticket_search.__version__,
    }
