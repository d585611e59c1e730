"""The level store: what was computed, under the key of what it was computed from."""
