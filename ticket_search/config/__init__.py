"""Specifications of searches as frozen and validated data, and the keys that identify them. No torch, no ray."""
