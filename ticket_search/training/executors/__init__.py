"""How levels are trained: one by one, or many at once. `executor.py` says what an executor is."""
