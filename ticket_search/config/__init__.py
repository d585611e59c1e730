"""What to run, as frozen validated data, and the keys that name it. Imports neither torch nor ray."""
