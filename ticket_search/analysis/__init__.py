"""What the tables say. Reads nothing else."""
