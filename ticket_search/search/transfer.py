"""Tickets on another data set than the one they were found on: itself a search, of one level each."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from ticket_search.errors import SpecError
from ticket_search.lottery.ticket import Ticket, read_ticket
from ticket_search.spec.loading import parse_search
from ticket_search.spec.search import SearchSpec


def read_tickets(paths: Sequence[Path]) -> dict[str, Ticket]:
    """The tickets of some files, each under the key that a level store keeps it under: a digest of the file.

    Raises:
        SpecError: a file is no ticket, or given twice.
    """
    tickets: dict[str, Ticket] = {}
    for path in paths:
        ticket = read_ticket(path)
        key = hashlib.sha256(path.read_bytes()).hexdigest()[:32]
        if key in tickets:
            raise SpecError(f"{str(path)!r} is the same ticket as another file given; give each once")
        tickets[key] = ticket
    return tickets


def transfer(
    tickets: Mapping[str, Ticket],
    dataset: str,
    *,
    seeds: int,
    draws: int,
    mask_alone: bool,
    settings: tuple[str, ...] = (),
) -> SearchSpec:
    """The search that trains tickets on another data set, with every seed, beside dense networks and controls.

    Network and training are those the tickets were found with; so are the sizes of the validation split and the
    augmentation. Its seeds are the first that no ticket was found with.

    Args:
        tickets: by key, see `read_tickets`.
        dataset: the name of the data set.
        seeds: how many.
        draws: of each kind of control, for each ticket and seed.
        mask_alone: start from the rewind weights of the dense networks trained there, instead of the tickets' own.
        settings: ``KEY=VALUE``, see `load_search`.

    Raises:
        SpecError: the tickets were not found with one network and one training, or the settings are wrong.
    """
    first, *others = tickets.values()
    for other in others:
        for what in ("model", "training"):
            if getattr(other.spec, what) != getattr(first.spec, what):
                raise SpecError(f"{first.name!r} and {other.name!r} differ in their {what}; transfer them one by one")
        if other.spec.trajectory.rewind_iteration != first.spec.trajectory.rewind_iteration:
            raise SpecError(
                f"{first.name!r} and {other.name!r} differ in their rewind_iteration; transfer them one by one"
            )
    spec = first.spec.model_dump(mode="json")
    fresh = 1 + max(ticket.spec.seed for ticket in tickets.values())
    what = first.name.replace("/", "_") if not others else f"{len(tickets)}_tickets"
    plain = {
        "name": re.sub(r"[^\w.-]", "_", f"{what}_on_{dataset}{'_mask_alone' if mask_alone else ''}")[:100],
        "dataset": {**spec["dataset"], "name": dataset, "path": None, "normalize": None},
        "model": spec["model"],
        "training": spec["training"],
        "trajectory": {
            "rewind_iteration": first.spec.trajectory.rewind_iteration,
            "ticket": next(iter(tickets)),
            "ticket_weights": "own" if mask_alone else "ticket",
        },
        # The mask alone is a random reinitialization already.
        "controls": {"kinds": ["shuffled_mask"] if mask_alone else ["random_reinit", "shuffled_mask"], "draws": draws},
        "space": {"ticket": list(tickets)},
        "seeds": list(range(fresh, fresh + seeds)),
        "search": {"sampler": "grid", "early_stopping": None},
    }
    return parse_search(yaml.safe_dump(plain, sort_keys=False), "transfer", settings)
