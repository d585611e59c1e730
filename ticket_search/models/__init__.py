"""Networks and their prunable parameters. Importing this package imports torch."""

from ticket_search.models.registry import aliases, build, build_from, check, network_digest, output_mark, prunable

__all__ = ["aliases", "build", "build_from", "check", "network_digest", "output_mark", "prunable"]
