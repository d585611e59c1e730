"""The address of the Ray cluster to use, found without importing Ray."""

import os


def cluster_address(address: str | None) -> str | None:
    """Return the given address of a Ray cluster, else that in ``RAY_ADDRESS``; None means to start a local Ray."""
    found = address or os.environ.get("RAY_ADDRESS")
    return None if found in (None, "", "local") else found
