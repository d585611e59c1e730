"""The networks, and which of their parameters pruning may touch. Loads torch."""

from ticket_search.models.registry import aliases, build, check, network_digest, prunable

__all__ = ["aliases", "build", "check", "network_digest", "prunable"]
