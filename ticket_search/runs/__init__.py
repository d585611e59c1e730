"""A run directory: its lock, its use of disk and level store, copies of it."""
