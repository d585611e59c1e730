"""Work that follows a search: confirm, transfer, stability, export."""
