"""What to run, as frozen and validated data, and the keys that identify it. Imports neither torch nor ray."""
