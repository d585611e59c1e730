"""Where trajectories run: in this process, in processes of this machine, or on Ray."""
