"""Run directories: their lock, their use of a level store, and copies of their results."""
