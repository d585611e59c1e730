"""Engines, which run trajectories in this process, in processes on this machine, or on Ray."""
