"""Tests whether copies of a ticket, trained in different data orders, end in the same linearly connected minimum.

The error barrier between two copies is the highest error on the line between their weights, minus the mean of the
errors at its ends. Frankle et al. (2020, arXiv 1912.05671) call a network stable if the barrier is below 2%.
"""

from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd

#: The mean barrier between copies below which a network counts as stable (2% of the images in Frankle et al.).
STABLE = 0.02
_ARM = ["ticket", "arm", "rewind_iteration", "density"]
_PAIR = [*_ARM, "first", "second"]


def barriers(lines: pd.DataFrame) -> pd.DataFrame:
    """Compute the error barrier on each line between two copies.

    Args:
        lines: the table from `follow_up.stability.lines_between_copies`.

    Returns:
        A row for each pair of copies, with the columns that identify the pair; ``val_error`` and ``test_error`` (the
        mean of the errors at the two ends of the line); and ``val_barrier`` and ``test_barrier``. If the metric is
        accuracy, errors and barriers are fractions of the images; otherwise they are in the metric's unit.
    """
    rows: list[dict[str, Any]] = []
    for pair, line in lines.groupby(_PAIR, sort=False):
        row: dict[str, Any] = dict(zip(_PAIR, pair, strict=True))
        ends = line[line["position"].isin([0.0, 1.0])]
        for split in ("val", "test"):
            row[f"{split}_error"] = _mean(ends[f"{split}_error"])
            row[f"{split}_barrier"] = float(line[f"{split}_error"].max()) - row[f"{split}_error"]
        rows.append(row)
    return pd.DataFrame(rows)


def stability_table(lines: pd.DataFrame) -> pd.DataFrame:
    """Summarize the barriers of each arm over its pairs of copies.

    Args:
        lines: the table from `follow_up.stability.lines_between_copies`.

    Returns:
        A row for the ticket and for each dense network: ``copies``; ``val_error``, ``val_barrier``, ``test_error``,
        ``test_barrier`` (means over pairs), ``val_barrier_max``, ``test_barrier_max``; and ``verdict``, which is
        ``stable`` if the mean barrier on the validation split is below `STABLE`, ``diverged`` if a copy diverged, and
        ``unstable`` otherwise. The verdict helps to choose a rewind iteration, so it does not depend on the
        test split.
    """
    pairs = barriers(lines).groupby(_ARM, sort=False)
    table = pairs[["val_error", "val_barrier", "test_error", "test_barrier"]].agg(_mean)
    for split in ("val", "test"):
        table[f"{split}_barrier_max"] = pairs[f"{split}_barrier"].max()
    table.insert(0, "copies", pairs["second"].max() + 1)
    judged = np.where(table["val_barrier"] < STABLE, "stable", "unstable")
    table["verdict"] = np.where(table["val_barrier"].isna(), "diverged", judged)
    return table.reset_index()


def _mean(values: "pd.Series[float]") -> float:
    """Return the mean, or nan if any value is nan."""
    return float(values.mean(skipna=False))


def plot(lines: pd.DataFrame) -> bytes:
    """Plot the errors on the lines (mean over pairs, with a band from minimum to maximum) and the barriers, as SVG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    on_lines, by_iteration = figure.subplots(1, 2)
    measured, ticket = barriers(lines), str(lines["ticket"].iloc[0])
    for number, ((_, arm, k, density), points) in enumerate(lines.groupby(_ARM, sort=False)):
        error = points.groupby("position")["val_error"]
        name = (
            f"ticket, density {density:.3g}, rewound to {k}" if arm == "ticket" else f"dense network from iteration {k}"
        )
        on_lines.plot(error.mean(), color=f"C{number}", label=name)
        on_lines.fill_between(error.mean().index, error.min(), error.max(), color=f"C{number}", alpha=0.2, linewidth=0)
    on_lines.set(xlabel="position between two copies", ylabel="validation error", xlim=(0, 1))
    on_lines.legend(fontsize="small")
    for number, arm in enumerate(("ticket", "dense")):
        pairs = measured[measured["arm"] == arm]
        mean = pairs.groupby("rewind_iteration")["val_barrier"].mean()
        by_iteration.plot(pairs["rewind_iteration"], pairs["val_barrier"], ".", color=f"C{number}", alpha=0.5)
        by_iteration.plot(mean, "o-", color=f"C{number}", label="ticket" if arm == "ticket" else "dense network")
    by_iteration.axhline(STABLE, color="grey", linestyle="--", label="stability threshold")
    by_iteration.set(xlabel="iteration at which the copies branch off", ylabel="error barrier")
    by_iteration.legend(fontsize="small")
    figure.suptitle(f"Linear mode connectivity of {ticket}", fontsize="medium")
    file = BytesIO()
    # Without a fixed salt and date, matplotlib would write a different file every time, even for the same lines.
    with mpl.rc_context({"svg.hashsalt": ticket, "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
