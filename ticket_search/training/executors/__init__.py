"""Executors, which train levels one at a time or several at once. `executor.py` defines the protocol."""
