"""What comes after a search: confirm, transfer, stability, export."""
