"""What a transfer comes to: tickets on another data set, beside its dense networks and their controls."""

from typing import Any

import numpy as np
import pandas as pd

from ticket_search.analysis.comparison import crossed, crossed_ratio
from ticket_search.analysis.confirmation import verdict
from ticket_search.results.reading import Results

_ACCURACIES = ("test_accuracy", "early_stop_test_accuracy")
_FIGURES = (*_ACCURACIES, "early_stop_iteration")


def transfer_table(results: Results, margin: float) -> pd.DataFrame:
    """The arms of a transfer, over tickets and seeds: ``dense``, ``ticket``, and each kind of control.

    Args:
        results: of the search that `search.transfer.transfer` makes.
        margin: how far below the dense network's test accuracy a ticket may be and still match.

    Returns:
        A row for each number of weights kept and arm: ``kept_weights``, ``density``, ``tickets`` and ``seeds`` (how
        many of each there are), ``arm``, and the figures of `comparison.compare` with intervals by
        `comparison.crossed`: gains are over the dense network of the same seed, leads those of the same ticket and
        seed. ``verdict``, of tickets: see `confirmation.confirm_table`.
    """
    levels = results.levels
    dense = levels[levels["level"] == 0].drop_duplicates("seed").set_index("seed")[list(_FIGURES)]
    rows: list[dict[str, Any]] = []
    for kept, found in levels[levels["level"] > 0].groupby("kept_weights", sort=False):
        controls = results.controls.merge(found[["trajectory_id", "ticket"]], on="trajectory_id")
        arms = {"ticket": found} | {str(kind): drawn for kind, drawn in controls.groupby("control", sort=True)}
        tickets, seeds = found["ticket"].unique(), found["seed"].unique()
        cells = {arm: {name: _cells(drawn, name, tickets, seeds) for name in _FIGURES} for arm, drawn in arms.items()}
        # The same dense networks beside every ticket.
        beside = {name: np.tile(dense[name].reindex(seeds).to_numpy(float), (len(tickets), 1)) for name in _FIGURES}
        cells = {"dense": beside} | cells
        group = []
        for arm, figures in cells.items():
            head = {"kept_weights": kept if arm != "dense" else found["prunable_weights"].iloc[0]}
            head |= {"density": found["density"].iloc[0] if arm != "dense" else 1.0}
            head |= {"tickets": len(tickets), "seeds": len(seeds), "arm": arm}
            group.append(head | _compared(arm, figures, cells["ticket"], beside))
        beaten = pd.DataFrame(group[2:])
        rows += [row | {"verdict": verdict(row, beaten, margin) if row["arm"] == "ticket" else None} for row in group]
    return pd.DataFrame(rows).assign(verdict=pd.Series([row["verdict"] for row in rows], dtype=object))


def _cells(rows: pd.DataFrame, name: str, tickets: Any, seeds: Any) -> Any:
    """``[tickets, seeds]`` of a figure, the draws of a control averaged."""
    table = rows.pivot_table(index="ticket", columns="seed", values=name, aggfunc="mean")
    return table.reindex(index=tickets, columns=seeds).to_numpy(float)


def _compared(arm: str, found: dict[str, Any], ticket: dict[str, Any], dense: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {}

    def put(name: str, value: tuple[float, float, float]) -> None:
        row.update(zip((name, f"{name}_low", f"{name}_high"), value, strict=True))

    # Dense networks are the same beside every ticket: each counts once.
    for name in _FIGURES:
        put(name, crossed(found[name][:1] if arm == "dense" else found[name]))
    for name in _ACCURACIES:
        put(f"{name}_gain", crossed(found[name] - dense[name]))
        if arm not in ("dense", "ticket"):
            put(f"{name}_lead", crossed(ticket[name] - found[name]))
    put("speed", crossed_ratio(dense["early_stop_iteration"], found["early_stop_iteration"]))
    if arm not in ("dense", "ticket"):
        put("slowdown", crossed_ratio(found["early_stop_iteration"], ticket["early_stop_iteration"]))
    return row
