"""Transfers tickets: creates a search that trains existing tickets on another data set."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from ticket_search.analysis.transfer import transfer_table
from ticket_search.config.base import Spec
from ticket_search.config.identity import digest
from ticket_search.config.imports import check_code_allowed
from ticket_search.config.loading import parse_search
from ticket_search.config.pruning import ControlsSpec, PruningSpec
from ticket_search.config.search import SearchSpec
from ticket_search.errors import SpecError
from ticket_search.lottery.ticket import Ticket, read_ticket
from ticket_search.results.figures import CONFIGURATION_NAMES
from ticket_search.results.reading import load_results
from ticket_search.runs.directory import differences
from ticket_search.storage.folder import Folder


def read_tickets(paths: Sequence[Path], *, allow_code: bool = False) -> dict[str, Ticket]:
    """Read ticket files.

    Args:
        paths: the paths of the ticket files.
        allow_code: whether to import and run user code that a ticket names; see `load_ticket`.

    Returns:
        A mapping from each ticket's key in a level store to the ticket.

    Raises:
        SpecError: a file does not contain a ticket, two files contain the same ticket, or a ticket names user code but
            `allow_code` is false.
    """
    tickets: dict[str, Ticket] = {}
    for path in paths:
        ticket = read_ticket(path)
        check_code_allowed(ticket.spec, path, allow_code=allow_code)
        if ticket.key in tickets:
            raise SpecError(f"{str(path)!r} contains the same ticket as another file; give each ticket once")
        tickets[ticket.key] = ticket
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
    """Return a search that trains tickets on another data set, along with dense networks and controls.

    The search takes the network, the training settings (with lengths in iterations), the size of the validation split
    and the augmentation from the tickets. It trains each ticket once per seed; the seeds are the integers that follow
    the highest seed of the tickets.

    Args:
        tickets: the tickets, by key; see `read_tickets`.
        dataset: the name of the data set to train on.
        seeds: the number of seeds.
        draws: the number of controls of each kind for each ticket and seed.
        mask_alone: whether to start from the rewind weights of dense networks that are trained on the new data set,
            instead of the tickets' own rewind weights.
        settings: ``KEY=VALUE`` strings; see `load_search`.

    Raises:
        SpecError: the tickets were found with different settings, a ticket starts from trained weights although
            `mask_alone` is false, or `settings` are not valid.
    """
    _check_transferable(tickets, mask_alone=mask_alone)
    first = next(iter(tickets.values()))
    spec = first.spec.model_dump(mode="json")
    fresh = 1 + max(ticket.spec.seed for ticket in tickets.values())
    plain = {
        "name": _name(tickets, dataset, mask_alone=mask_alone),
        "task": spec["task"],
        "dataset": {**spec["dataset"], "name": dataset, "path": None, "normalize": None},
        "model": spec["model"],
        "training": spec["training"],
        "pruning": {
            # Only the rewind iteration affects the training of a ticket. The other fields go into the tables, as a
            # record of how the tickets were found.
            **{name: spec["pruning"][name] for name in CONFIGURATION_NAMES},
            "ticket": next(iter(tickets)),
            "ticket_weights": "own" if mask_alone else "ticket",
        },
        # With `mask_alone`, the ticket itself starts from new weights, so `random_reinit` controls would add nothing.
        "controls": {"kinds": ["shuffled_mask"] if mask_alone else ["random_reinit", "shuffled_mask"], "draws": draws},
        "space": {"ticket": list(tickets)},
        "seeds": list(range(fresh, fresh + seeds)),
        "search": {"sampler": "grid", "early_stopping": None},
    }
    # JSON is YAML with every string quoted. Without quotes, a key such as 123...8e901 would be read as a number.
    search = parse_search(json.dumps(plain), "transfer", settings)
    if list(search.space) != ["ticket"]:
        raise SpecError(
            f"--set: the space of a transfer must contain only its tickets, not {list(search.space)}; give every "
            "other field a single value"
        )
    return search


def _check_transferable(tickets: Mapping[str, Ticket], *, mask_alone: bool) -> None:
    first, *others = tickets.values()
    for other in others:
        if different := differences(_found_by(first), _found_by(other)):
            raise SpecError(
                f"tickets {first.name!r} and {other.name!r} were found with different settings of "
                f"{', '.join(different)}; transfer them one by one"
            )
    for ticket in tickets.values():
        if ticket.spec.pruning.retrain != "weights" and not mask_alone:
            raise SpecError(
                f"ticket {ticket.name!r} starts from trained weights (pruning.retrain "
                f"{ticket.spec.pruning.retrain!r}), so a transfer would fine-tune them; use only its mask, with "
                "--mask-alone"
            )


def _name(tickets: Mapping[str, Ticket], dataset: str, *, mask_alone: bool) -> str:
    first = next(iter(tickets.values()))
    several = f"{len(tickets)}_tickets_{digest(sorted(tickets))[:8]}"
    subject = first.name.replace("/", "_") if len(tickets) == 1 else several
    return re.sub(r"[^\w.-]", "_", f"{subject}_on_{dataset}{'_mask_alone' if mask_alone else ''}")[:100]


def _found_by(ticket: Ticket) -> Spec:
    """Return the settings with which a ticket was found, without the seed, the controls and the number of levels."""
    defaults = {name: PruningSpec.model_fields[name].default for name in ("min_density", "max_levels")}
    pruning = ticket.spec.pruning.model_copy(update=defaults)
    return ticket.spec.model_copy(update={"pruning": pruning, "controls": ControlsSpec(), "seed": 0})


def write_transfer(run_dir: Folder, margin: float) -> pd.DataFrame | None:
    """Compute, write and return the table ``transfer``; return None if no ticket has finished training."""
    table = transfer_table(load_results(run_dir), margin)
    if table.empty:
        return None
    (run_dir / "transfer").write("part-00000.parquet", table.to_parquet())
    return table
