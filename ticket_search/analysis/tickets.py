"""The sparsest matching tickets of a search, and its progress."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from ticket_search.results.figures import CONFIGURATION_NAMES, SEED
from ticket_search.results.plain import records
from ticket_search.results.reading import Results

__all__ = ["FIGURES", "records", "status", "tickets"]

#: The columns that follow the configuration in `tickets`. A metric other than accuracy uses the columns `..._metric`.
_SIZES = ["density", "compression"]
_ACCURACIES = ["val_accuracy", "dense_val_accuracy", "test_accuracy", "dense_test_accuracy"]
_METRICS = ["val_metric", "dense_val_metric", "test_metric", "dense_test_metric"]
FIGURES = [*_SIZES, *_ACCURACIES, *_METRICS]


def tickets(results: Results, searched: Iterable[str] = ()) -> pd.DataFrame:
    """List the sparsest matching ticket of each trajectory, sparsest first.

    Args:
        results: the tables of a search.
        searched: the names of the searched fields; each searched field outside the configuration gets its own column.

    Returns:
        One row for each trajectory that has a matching ticket (level 0, the dense network, is not a ticket): ``ticket``
        (its name, ``<trajectory_id>/<level>``), ``trajectory_id``, ``level``, the configuration, ``density``,
        ``compression``, and the metric: ``val_accuracy`` and so on, or ``val_metric`` and so on for a metric other
        than accuracy. Of two equally dense tickets, the one with the greater lead over its dense network comes first.
    """
    matching = results.levels[results.levels["matching"] & (results.levels["level"] > 0)]
    sparsest = matching.sort_values(["trajectory_id", "level"]).groupby("trajectory_id", as_index=False).tail(1)
    # A transfer searches a field called "ticket", which would collide with the column of ticket names.
    sparsest = sparsest.rename(columns={"ticket": "trajectory.ticket"}).assign(
        ticket=sparsest["trajectory_id"] + "/" + sparsest["level"].astype(str),
        lead=(sparsest["val_metric"] - sparsest["dense_val_metric"]) * np.where(sparsest["higher_is_better"], 1, -1),
    )
    ordered = sparsest.sort_values(["density", "lead", "trajectory_id"], ascending=[True, False, True])
    configuration = [*CONFIGURATION_NAMES, SEED.name]
    searched = ["trajectory.ticket" if name == "ticket" else name for name in searched]
    others = [name for name in searched if name in ordered.columns and name not in configuration]
    metrics = _ACCURACIES if (results.levels["metric"] == "accuracy").all() else _METRICS
    columns = ["ticket", "trajectory_id", "level", *configuration, *others, *_SIZES, *metrics]
    return ordered[columns].reset_index(drop=True)


def status(results: Results) -> dict[str, Any]:
    """Return counts and totals from a search's tables, as JSON-serializable data."""
    by_status = results.trajectories["status"].value_counts()
    return {
        "trajectories": {str(name): int(count) for name, count in by_status.items()},
        "levels": len(results.levels),
        "controls": len(results.controls),
        "levels_trained": int((~results.levels["reused"]).sum()),
        "iterations": int(results.levels.loc[~results.levels["reused"], "iterations"].sum()),
        "train_seconds": float(results.levels.loc[~results.levels["reused"], "train_seconds"].sum()),
        "best": _first(tickets(results)),
    }


def _first(frame: pd.DataFrame) -> dict[str, Any] | None:
    return None if frame.empty else records(frame.head(1))[0]
