"""Files on a local disk or in object storage: replaced atomically, appended line by line, or claimed by one process."""
