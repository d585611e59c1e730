"""The command line."""

from ticket_search.cli.commands import main

__all__ = ["main"]
