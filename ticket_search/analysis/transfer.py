"""The table of a transfer: tickets trained on another data set, compared with dense networks and controls."""

from typing import Any

import numpy as np
import pandas as pd

from ticket_search.analysis.comparison import crossed, crossed_ratio
from ticket_search.analysis.confirmation import check_margin, verdict
from ticket_search.analysis.measure import Measure, measure_of
from ticket_search.results.reading import Results


def transfer_table(results: Results, margin: float) -> pd.DataFrame:
    """Summarize each arm of a transfer over tickets and seeds.

    The arms are ``dense``, ``ticket``, and each kind of control.

    Args:
        results: the tables of the search that `follow_up.transfer.transfer` returns.
        margin: how much worse (at least 0) a ticket's test metric may be than the dense network's for the ticket to
            match.

    Returns:
        A row for each arm at each number of kept weights: ``kept_weights``, ``density``, ``arm``; ``tickets`` and
        ``seeds`` (the numbers of tickets and seeds that have figures); ``trainings`` (the number of (ticket, seed)
        pairs that have figures); and the figures of `comparison.compare`, with intervals from `comparison.crossed`.
        Gains compare an arm with the dense network of the same seed; leads compare the ticket with the control of the
        same ticket and seed. The column ``verdict`` is described in `confirmation.confirm_table`.

    Raises:
        SpecError: the margin is negative or not a finite number.
    """
    check_margin(margin)
    levels, measure = results.levels, measure_of(results.levels)
    first = levels[levels["level"] == 0].sort_values(["seed", "trajectory_id"]).drop_duplicates("seed")
    dense, seeds = first.set_index("seed")[list(measure.figures)], sorted(first["seed"])
    rows: list[dict[str, Any]] = []
    tickets_of = dict(list(levels[levels["level"] > 0].groupby("kept_weights", sort=True)))
    for trained in reversed(tickets_of.values()):
        controls = results.controls.merge(trained[["trajectory_id", "ticket"]], on="trajectory_id")
        arms = {"ticket": trained} | {str(kind): drawn for kind, drawn in controls.groupby("control", sort=True)}
        # Sort the tickets: trajectories finish in any order, and the bootstrap depends on the order of the tickets.
        tickets = sorted(trained["ticket"].unique())
        cells = {
            arm: {name: _cells(drawn, name, tickets, seeds) for name in measure.figures} for arm, drawn in arms.items()
        }
        # Repeat the dense networks' figures for each ticket, because all tickets are compared with the same networks.
        beside = {
            name: np.tile(dense[name].reindex(seeds).to_numpy(float), (len(tickets), 1)) for name in measure.figures
        }
        sizes: dict[str, Any] = {name: trained[name].iloc[0] for name in ("kept_weights", "density")}
        unpruned = {"kept_weights": trained["prunable_weights"].iloc[0], "density": 1.0}
        group = [
            (unpruned if arm == "dense" else sizes)
            | {"arm": arm}
            | _compared(arm, figures, cells["ticket"], beside, measure)
            for arm, figures in ({"dense": beside} | cells).items()
        ]
        beaten = pd.DataFrame(group[2:])
        rows += [row | {"verdict": verdict(row, beaten, margin) if row["arm"] == "ticket" else None} for row in group]
    return pd.DataFrame(rows).assign(verdict=pd.Series([row["verdict"] for row in rows], dtype=object))


def _cells(rows: pd.DataFrame, name: str, tickets: Any, seeds: Any) -> Any:
    """Return the values of a figure as ``[tickets, seeds]``; a control's values are the means over its draws."""
    table = rows.pivot_table(index="ticket", columns="seed", values=name, aggfunc="mean")
    return table.reindex(index=tickets, columns=seeds).to_numpy(float)


def _compared(
    arm: str, cells: dict[str, Any], ticket: dict[str, Any], dense: dict[str, Any], measure: Measure
) -> dict[str, Any]:
    final = cells[measure.final]
    has_figures = ~np.isnan(final[:1] if arm == "dense" else final)
    row: dict[str, Any] = {
        "tickets": len(final) if arm == "dense" else int(has_figures.any(axis=1).sum()),
        "seeds": int(has_figures.any(axis=0).sum()),
        "trainings": int(has_figures.sum()),
    }

    def put(name: str, value: tuple[float, float, float]) -> None:
        row.update(zip((name, f"{name}_low", f"{name}_high"), value, strict=True))

    # All rows of the dense networks' figures are equal (there is one per ticket), so use only the first.
    for name in measure.figures:
        put(name, crossed(cells[name][:1] if arm == "dense" else cells[name]))
    for name in measure.columns:
        put(f"{name}_gain", crossed(measure.lead(cells[name], dense[name])))
        if arm not in ("dense", "ticket"):
            put(f"{name}_lead", crossed(measure.lead(ticket[name], cells[name])))
    put("speed", crossed_ratio(dense["early_stop_iteration"], cells["early_stop_iteration"]))
    row["speed_mean_of_ratios"] = float(np.nanmean(dense["early_stop_iteration"] / cells["early_stop_iteration"]))
    if arm not in ("dense", "ticket"):
        put("slowdown", crossed_ratio(cells["early_stop_iteration"], ticket["early_stop_iteration"]))
    return row
