"""All commands of `ticket-search`; importing this module registers them."""

from ticket_search.cli import follow_up, look, run, store
from ticket_search.cli.group import main

__all__ = ["follow_up", "look", "main", "run", "store"]
