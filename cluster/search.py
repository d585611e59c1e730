"""Runs `ticket-search` on the head of a cluster; `ray submit` passes the arguments to this script.

    ray submit cluster/on_prem.yaml cluster/search.py -- run search_spaces/digits.yaml --output /shared/runs/digits

It exits with the exit code of `ticket-search`, which `ray submit` turns into 0 or 1. Relative paths are
resolved against the copy of the repository on the head, ~/ticket-search.
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
