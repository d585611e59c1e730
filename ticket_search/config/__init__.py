"""Specifications of searches as immutable, validated data, and their keys. Nothing here imports torch or ray."""
