"""Entry point of ``python -m ticket_search.cli``."""

from ticket_search.cli import main

main()
