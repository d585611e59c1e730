"""Analyses that read nothing but a search's tables."""
