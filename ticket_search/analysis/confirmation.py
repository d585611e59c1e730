"""The table of a confirmation: each configuration's ticket, dense network and controls, and a verdict on the ticket."""

import math
from typing import Any

import pandas as pd

from ticket_search.analysis.comparison import TRAJECTORY_ARMS, compare
from ticket_search.analysis.measure import final_column
from ticket_search.errors import SpecError
from ticket_search.results.reading import Results


def confirm_table(results: Results, margin: float) -> pd.DataFrame:
    """Compare the arms of each configuration at its last level, and judge its ticket.

    Args:
        results: the tables of the confirming search.
        margin: how far a ticket may fall short of the dense network on the test metric and still match; at least 0.

    Returns:
        The rows of `comparison.compare` for level 0 and the last level of each configuration, with an added column
        ``verdict``, which is null except for tickets. The verdict depends on the 95% interval of the ticket's gain over
        the dense networks, in the test metric after the last iteration: ``better`` if the interval lies above 0,
        ``matches`` if it lies above -margin, ``worse`` if it lies below -margin, and otherwise ``undecided``. The
        verdict also lists the controls that the ticket ``beats`` (the interval of its lead lies above 0) and those that
        it ``does not beat``.

    Raises:
        SpecError: the margin is negative or not a finite number.
    """
    check_margin(margin)
    rows = compare(results)
    fixed = list(rows.columns[: rows.columns.get_loc("level")])
    last = rows.groupby(fixed, dropna=False)["level"].transform("max")
    rows = rows[(rows["level"] == 0) | (rows["level"] == last)].reset_index(drop=True)
    verdicts: list[str | None] = []
    for row in rows.to_dict("records"):
        same = (rows["level"] == row["level"]) & (rows[fixed].apply(tuple, axis=1) == tuple(row[n] for n in fixed))
        controls = rows[same & ~rows["arm"].isin(TRAJECTORY_ARMS)]
        verdicts.append(verdict(row, controls, margin) if row["arm"] == "ticket" else None)
    return rows.assign(verdict=pd.Series(verdicts, dtype=object))


def check_margin(margin: float) -> None:
    """Check that a margin is finite and not negative.

    With a margin of nan, no ticket could ever match or be worse, because every comparison with nan is false.

    Raises:
        SpecError: the margin is negative or not finite.
    """
    if not (math.isfinite(margin) and margin >= 0):
        raise SpecError(f"margin {margin!r} is not valid: give a finite number that is at least 0, such as 0.005")


def verdict(ticket: dict[Any, Any], controls: pd.DataFrame, margin: float) -> str:
    """Return the verdict on a ticket, as described in `confirm_table`.

    Args:
        ticket: the ticket's row of figures.
        controls: the rows of its controls.
        margin: see `confirm_table`.
    """
    measured = final_column(ticket)
    low, high = ticket[f"{measured}_gain_low"], ticket[f"{measured}_gain_high"]
    if low > 0:
        words = "better"
    elif low > -margin:
        words = "matches"
    else:
        words = "worse" if high < -margin else "undecided"
    if controls.empty:
        return words
    # A control's lead has no interval if only one seed has both the ticket and the control.
    controls = controls[controls[f"{measured}_lead_low"].notna()]
    beaten = controls[f"{measured}_lead_low"] > 0
    for word, arms in (("beats", controls.loc[beaten, "arm"]), ("does not beat", controls.loc[~beaten, "arm"])):
        words += f", {word} {' and '.join(arms)}" if len(arms) else ""
    return words
