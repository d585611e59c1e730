"""Specifications of searches as frozen, validated data, and their keys. Imports neither torch nor ray."""
