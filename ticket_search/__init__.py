"""Distributed search for winning lottery tickets."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ticket_search.launch.api import run_search
    from ticket_search.lottery.ticket import load_ticket
    from ticket_search.results.reading import Results, load_results

__version__ = "0.1.0"
__all__ = ["Results", "__version__", "load_results", "load_ticket", "run_search"]

_HOMES = {
    "Results": "ticket_search.results.reading",
    "load_results": "ticket_search.results.reading",
    "load_ticket": "ticket_search.lottery.ticket",
    "run_search": "ticket_search.launch.api",
}


def __dir__() -> list[str]:
    """Include public names that have not been imported yet, so that tab completion finds them."""
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that ``import ticket_search`` does not import torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
