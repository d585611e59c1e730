"""Train fully connected layers on the CPU at a cost that follows the number of kept weights."""
