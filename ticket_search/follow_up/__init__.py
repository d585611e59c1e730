"""Implements the commands that follow up on a search: confirm, transfer, stability, export."""
