"""What `ray submit` sends to a cluster's head: `ticket-search`, with the same arguments, on the cluster it runs on.

    ray submit cluster/on_prem.yaml cluster/search.py -- run search_spaces/digits.yaml --output /shared/runs/digits

It ends with the exit code of `ticket-search`, of which `ray submit` makes 0 or 1. Relative paths are those of the copy
of the repository on the head, ~/ticket-search.
"""

import os
from pathlib import Path

os.environ.setdefault("RAY_ADDRESS", "auto")
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from ticket_search.cli import main

repository = Path("~/ticket-search").expanduser()
if repository.is_dir():
    os.chdir(repository)
main(prog_name="ticket-search")
