"""Datasets. `arrays` reads them with numpy alone; `dataset` puts them on a device, split and normalised, with torch."""

from ticket_search.data.arrays import Arrays, check_fits, label_notices, read_arrays

__all__ = ["Arrays", "check_fits", "label_notices", "read_arrays"]
