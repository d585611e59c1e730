"""Distributed search for winning lottery tickets."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ticket_search.results.reading import Results, load_results

__version__ = "0.1.0"
__all__ = ["Results", "__version__", "load_results"]


def __getattr__(name: str) -> Any:
    """Import the public names on first use: ``import ticket_search`` stays instant."""
    if name in ("Results", "load_results"):
        from ticket_search.results import reading

        return getattr(reading, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
