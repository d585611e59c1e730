"""Finds the address of the Ray cluster to use, without importing Ray."""

import os


def cluster_address(address: str | None) -> str | None:
    """Return the given address, or else the value of ``RAY_ADDRESS``; None if a local Ray cluster must be started."""
    found = address or os.environ.get("RAY_ADDRESS")
    return None if found in (None, "", "local") else found
