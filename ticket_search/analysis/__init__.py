"""Analyses of a search's tables."""
