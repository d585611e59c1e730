"""Iterative magnitude pruning, independent of Ray. Start reading in `trajectory.py`."""
