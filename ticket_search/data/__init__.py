"""Data sets. `arrays` reads them into numpy arrays; `dataset` prepares them for training with torch."""

from ticket_search.data.arrays import Arrays, check_fits, label_notices, read_arrays

__all__ = ["Arrays", "check_fits", "label_notices", "read_arrays"]
