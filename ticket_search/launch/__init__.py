"""Starting a search: the checks before the start, the estimate of its disk use, the run."""
