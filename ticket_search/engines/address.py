"""Which Ray cluster is meant, without Ray."""

import os


def cluster_address(address: str | None) -> str | None:
    """The Ray cluster to run on: the one named, else that of ``RAY_ADDRESS``; None for a Ray of our own here."""
    found = address or os.environ.get("RAY_ADDRESS")
    return None if found in (None, "", "local") else found
