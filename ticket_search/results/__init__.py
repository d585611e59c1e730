"""The result tables, the event log and the TensorBoard files of a run directory. Imports neither torch nor ray."""
