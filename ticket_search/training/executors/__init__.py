"""Executors, which train levels one by one or several at once. `executor.py` defines the protocol."""
