"""Run directories: their lock, their use of disk and level store, and copies of their results."""
