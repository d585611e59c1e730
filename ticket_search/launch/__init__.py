"""Starts a search: checks it, estimates its disk use, and runs it."""
