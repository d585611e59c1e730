"""Analyses of a search's tables, which are their only input."""
