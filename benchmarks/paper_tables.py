"""Print Markdown tables that compare the tickets of a replication or transfer with controls and dense networks.

    python benchmarks/paper_tables.py RUN_DIR [--levels 3 7 9 15 18 20]

All intervals are 95% intervals over seeds (`ticket_search.analysis.comparison`). The gain is the mean difference in
test accuracy between an arm and the dense network of the same seed, in percentage points. The speed of an arm is the
early-stop iteration of the dense network divided by that of the arm.
"""

import argparse

import pandas as pd

from ticket_search import load_results
from ticket_search.analysis.comparison import TRAJECTORY_ARMS, compare
from ticket_search.analysis.transfer import transfer_table


def accuracy_table(rows: pd.DataFrame, figure: str) -> str:
    """Return a table of the test accuracy in percent and the gain over the dense network in percentage points."""
    lines = ["| weights | arm | seeds | test accuracy | gain over dense |", "|---:|---|---:|---|---|"]
    for row in rows.to_dict("records"):
        accuracy = _ends(row, figure, 100, ".2f")
        gain = "" if row["arm"] == "dense" else _ends(row, f"{figure}_gain", 100, "+.2f")
        lines.append(f"| {row['density']:.1%} | {_named(row)} | {row['seeds']} | {accuracy} | {gain} |")
    return "\n".join(lines)


def speed_table(rows: pd.DataFrame) -> str:
    """Return a table of the early-stop iteration and the speed relative to the dense network."""
    lines = [
        "| weights | arm | early-stop iteration | speed: ratio of means | mean of ratios |",
        "|---:|---|---|---|---:|",
    ]
    for row in rows.to_dict("records"):
        iteration = _ends(row, "early_stop_iteration", 1, ",.0f")
        speed = "" if row["arm"] == "dense" else _ends(row, "speed", 1, ".2f")
        mean = "" if row["arm"] == "dense" else f"{row['speed_mean_of_ratios']:.2f}"
        lines.append(f"| {row['density']:.1%} | {_named(row)} | {iteration} | {speed} | {mean} |")
    return "\n".join(lines)


def lead_table(rows: pd.DataFrame, figure: str) -> str:
    """Return a table of the ticket's lead over each control, in test accuracy and in the early-stop iteration."""
    head = "| weights | control | ticket's lead | early-stop iteration, divided by the ticket's |"
    lines = [head, "|---:|---|---|---|"]
    for row in rows[~rows["arm"].isin(TRAJECTORY_ARMS)].to_dict("records"):
        lead, slowdown = _ends(row, f"{figure}_lead", 100, "+.2f"), _ends(row, "slowdown", 1, ".2f")
        lines.append(f"| {row['density']:.1%} | {_named(row)} | {lead} | {slowdown} |")
    return "\n".join(lines)


def _ends(row: dict[str, float], name: str, factor: float, form: str) -> str:
    mean, low, high = (format(factor * row[key], form) for key in (name, f"{name}_low", f"{name}_high"))
    return f"{mean} ({low} to {high})"


def _named(row: dict[str, str]) -> str:
    return row["arm"].replace("_", " ")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir")
    parser.add_argument("--levels", type=int, nargs="*", help="levels to print besides level 0 (default: all)")
    arguments = parser.parse_args()
    results = load_results(arguments.run_dir)
    rows = transfer_table(results, margin=0.005) if "ticket" in results.levels else compare(results)
    if arguments.levels and "level" in rows:
        rows = rows[rows["level"].isin([0, *arguments.levels])]
    print("After the last iteration:\n")
    print(accuracy_table(rows, "test_accuracy"))
    print("\nAt the early-stop iteration, which has the lowest validation loss:\n")
    print(accuracy_table(rows, "early_stop_test_accuracy"))
    print("\nEarly-stop iterations:\n")
    print(speed_table(rows))
    if not set(rows["arm"]) <= set(TRAJECTORY_ARMS):
        print("\nThe ticket's lead over its controls, in accuracy after the last iteration and in time:\n")
        print(lead_table(rows, "test_accuracy"))


if __name__ == "__main__":
    main()
