"""From a search as written to a search that runs: checks before the start, the disk it takes, the run."""
