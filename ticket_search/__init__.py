"""Distributed search for winning lottery tickets."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ticket_search.lottery.ticket import load_ticket
    from ticket_search.results.reading import Results, load_results

__version__ = "0.1.0"
__all__ = ["Results", "__version__", "load_results", "load_ticket"]


def __getattr__(name: str) -> Any:
    """Import the public names on first use: ``import ticket_search`` stays instant."""
    if name in ("Results", "load_results"):
        from ticket_search.results import reading

        return getattr(reading, name)
    if name == "load_ticket":
        from ticket_search.lottery.ticket import load_ticket

        return load_ticket
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
