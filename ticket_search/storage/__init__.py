"""Files on a local disk or in object storage: atomic replacement, append-only lines, and exclusive claims."""
