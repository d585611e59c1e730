"""Commands that follow a search: confirm, transfer, stability, export."""
