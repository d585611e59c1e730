"""What a level was trained with, as the store records it beside the level's figures."""

from typing import Any

import torch

import ticket_search


def trained_with(device: torch.device) -> dict[str, Any]:
    """The versions, the device and the threads of this process.

    They are figures and not part of the level key: a level trained elsewhere is reused, and its row says where it was
    trained. Numbers may differ in the last bits between devices and thread counts.

    Args:
        device: that the level is trained on.
    """
    return {
        "torch_version": str(torch.__version__),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "ticket_search_version": ticket_search.__version__,
    }
