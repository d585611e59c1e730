"""Specifications of searches as frozen and validated data, and the keys that identify them. Without torch or ray."""
