"""Iterative magnitude pruning. Knows nothing of Ray; start reading in `trajectory.py`."""
