"""Files on a local disk or in object storage: written whole, line by line, or claimed by one process."""
