"""Analyses of the tables of a search."""
