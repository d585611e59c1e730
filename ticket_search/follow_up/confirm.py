"""Confirms a search by running its best configurations again, on fresh seeds and with controls."""

from collections.abc import Iterable

import pandas as pd

from ticket_search.analysis.confirmation import confirm_table
from ticket_search.config.base import validate
from ticket_search.config.search import SearchSpec
from ticket_search.config.space import dotted
from ticket_search.errors import SpecError
from ticket_search.results.reading import load_results
from ticket_search.runs.directory import read_spec
from ticket_search.runs.places import store_folder
from ticket_search.search.suggestions import SuggestionRecord
from ticket_search.storage.folder import Folder

_LAST_LEVEL = "max_levels"


def confirmation(
    run_dir: Folder, tickets: Iterable[tuple[str, int]], *, top: int, seeds: int, draws: int
) -> SearchSpec:
    """Return a search that confirms an original search.

    The search trains each of the best configurations up to the level of the configuration's best ticket. Its seeds are
    the integers that follow the highest seed of the original search, and both searches share a level store.

    Args:
        run_dir: the run directory of the original search.
        tickets: the trajectory id and the level of each matching ticket of the original search, best first.
        top: the number of configurations.
        seeds: the number of fresh seeds.
        draws: the number of controls of each kind for each ticket. If the weights of any ticket are not rewound,
            no ticket gets controls.

    Raises:
        SpecError: no ticket of the search matches its dense network.
    """
    spec = read_spec(run_dir)
    points = _points(run_dir, tickets, top)
    if not points:
        raise SpecError(f"{str(run_dir)!r}: no ticket matches its dense network, so there is nothing to confirm")
    first = max(spec.seeds) + 1
    plain = spec.model_dump(mode="json")
    rewinds = all(spec.trajectory_at(values, first).pruning.retrain == "weights" for values in points)
    plain |= {
        "name": f"{spec.name[:90]}_confirm",
        "space": {name: _distinct([point[name] for point in points]) for name in points[0]},
        "points": points,
        "seeds": list(range(first, first + seeds)),
        "controls": {"kinds": ["random_reinit", "shuffled_mask"] if rewinds else [], "draws": draws, "levels": "last"},
        "store": str(store_folder(spec, run_dir)),
    }
    plain["search"] |= {"sampler": "grid", "trials": None, "early_stopping": None}
    return validate(SearchSpec, plain, where="confirm: ")


def _points(run_dir: Folder, tickets: Iterable[tuple[str, int]], top: int) -> list[dict[str, object]]:
    """Return the distinct configurations of the best tickets. Tickets that differ only in their seeds share one."""
    record = SuggestionRecord(run_dir)
    suggestions = {s.trajectory_id: s for s in record.read()}
    points: list[dict[str, object]] = []
    taken: list[object] = []
    for trajectory_id, level in tickets:
        if trajectory_id not in suggestions:
            raise record.damaged(f"it lacks the trajectory {trajectory_id!r}, which is in the tables")
        values = dict(suggestions[trajectory_id].values)
        if values not in taken and len(points) < top:
            taken.append(values)
            values = {name: value for name, value in values.items() if dotted(name) != f"pruning.{_LAST_LEVEL}"}
            points.append(values | {_LAST_LEVEL: level})
    return points


def _distinct(values: list[object]) -> list[object]:
    return [value for i, value in enumerate(values) if value not in values[:i]]


def write_confirmation(run_dir: Folder, confirmed: Folder, margin: float) -> pd.DataFrame:
    """Compute the table ``confirm`` from the results of a confirmation, and write it; see `confirm_table`.

    Args:
        run_dir: the run directory of the original search, to which the table is written.
        confirmed: the run directory of the confirmation.
        margin: see `confirm_table`.

    Returns:
        The table.
    """
    table = confirm_table(load_results(confirmed), margin)
    (run_dir / "confirm").write("part-00000.parquet", table.to_parquet())
    return table
