"""The command line: parse, call, exit code. Each command imports what is heavy when it is called."""

from ticket_search.cli import follow_up, look, run, store
from ticket_search.cli.group import main

__all__ = ["follow_up", "look", "main", "run", "store"]
