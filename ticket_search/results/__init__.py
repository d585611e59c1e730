"""The result tables, the event log and the TensorBoard files of a run directory.

This package imports neither torch nor ray.
"""
