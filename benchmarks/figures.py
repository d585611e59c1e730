"""Draw the plots of test accuracy against density in docs/ from the Parquet files in this folder.

    python benchmarks/figures.py [--output docs/figures]

Each line is the mean over seeds, and the band around it is the 95% interval (`ticket_search.analysis.comparison`).
Every run writes identical files: they contain no dates, and their IDs are fixed.
The README's figure is also drawn in light colors on a dark background, as `mnist_lenet_dark.svg`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from ticket_search import load_results
from ticket_search.analysis.comparison import compare
from ticket_search.analysis.transfer import transfer_table

HERE = Path(__file__).parent
#: These are positions in Matplotlib's color cycle rather than fixed colors, so that each style can define its own.
BLUE, ORANGE, GREEN, PURPLE, GREY = "C0", "C1", "C2", "C3", "C4"
STYLE = {
    # Okabe and Ito's colors, which color-blind readers can tell apart.
    "axes.prop_cycle": cycler(color=["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#555555"]),
    "svg.fonttype": "none",  # keep text as text, which makes the files smaller and searchable
    "svg.hashsalt": "ticket_search",  # without a fixed salt, the IDs of elements are random
    # On a transparent background, black text would be unreadable on a dark page.
    "savefig.facecolor": "white",
    "savefig.bbox": "tight",
    "savefig.pad_inches": 0.2,
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "axes.edgecolor": "#888888",
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "legend.frameon": False,
}
DARK = STYLE | {
    "axes.prop_cycle": cycler(color=["#56B4E9", "#E69F00", "#2BC79A", "#E08FBE", "#A0A8B0"]),
    "savefig.facecolor": "#0d1117",  # GitHub's dark background
    "axes.facecolor": "#0d1117",
    "grid.color": "#262c34",
    "text.color": "#f0f6fc",
    "axes.labelcolor": "#f0f6fc",
    "xtick.color": "#f0f6fc",
    "ytick.color": "#f0f6fc",
}


def mnist_lenet() -> Figure:
    """Plot the tickets of LeNet-300-100 and both controls, with axis ticks at the densities that have controls."""
    figure, axes, rows = _with_tickets("mnist_lenet")
    _line(axes, _arm(rows, "random_reinit"), "same mask, random reinitialization", ORANGE, "s")
    _line(axes, _arm(rows, "shuffled_mask"), "mask shuffled within layers", PURPLE, "^")
    shuffled = _arm(rows, "shuffled_mask").set_index("density")["test_accuracy"]
    _finish(axes, "LeNet-300-100 on MNIST, five seeds", rows, [1, *shuffled.index])
    axes.set_ylim(94.9, 98.75)
    # Print the last two means of shuffled masks instead of plotting them: a longer axis would flatten all lines.
    below = [f"{accuracy:.1%} at {_percent(density)}" for density, accuracy in shuffled[shuffled < 0.949].items()]
    axes.annotate("shuffled:\n" + "\n".join(below), (0.0238, 95.0), fontsize=9)
    axes.legend(loc="lower left")
    return figure


def cifar10_conv2() -> Figure:
    """Plot the tickets of Conv-2; no controls were trained."""
    figure, axes, rows = _with_tickets("cifar10_conv2")
    _finish(axes, "Conv-2 on CIFAR-10 (JPEG), five seeds", rows)
    axes.set_ylim(66.2, 70.8)
    axes.legend(loc="upper left")
    return figure


def cifar10_resnet20() -> Figure:
    """Plot the tickets of ResNet-20 on a subset of CIFAR-10, with one line for each rewind iteration."""
    rows = compare(load_results(HERE / "cifar10_resnet20_subset"))
    figure, axes = _panels(1)
    _dense(axes[0], rows)
    arms = {
        0: ("ticket rewound to its initialization", BLUE, "o"),
        156: ("ticket rewound to iteration 156", ORANGE, "s"),
    }
    for iteration, (label, color, marker) in arms.items():
        _line(axes[0], _arm(rows[rows["rewind_iteration"] == iteration], "ticket"), label, color, marker)
    _finish(axes[0], "ResNet-20, 5,000 images of CIFAR-10, 20 epochs, three seeds", rows)
    axes[0].set_ylim(56, 72)
    axes[0].legend(loc="upper left")
    return figure


def transfer() -> Figure:
    """Plot transferred tickets, which keep 13.5% of the weights, and the data set's own tickets at every density."""
    figure, axes = _panels(2)
    directions = [
        (axes[0], "Trained on Fashion-MNIST", "fashion_lenet", "mnist_to_fashion", "ticket of MNIST"),
        (axes[1], "Trained on MNIST", "mnist_lenet", "fashion_to_mnist", "ticket of Fashion-MNIST"),
    ]
    for panel, title, own, transferred, label in directions:
        rows = compare(load_results(HERE / own))
        moved = transfer_table(load_results(HERE / "transfer" / transferred), margin=0.005)
        panel.axhline(0, color=GREY, linewidth=1, linestyle="--", label="dense network")
        _line(panel, _arm(rows, "ticket"), "the data set's own ticket", BLUE, "o", "test_accuracy_gain")
        arms = [
            ("ticket", label, GREEN, "D", 1.12),
            ("random_reinit", "its mask, reinitialized", ORANGE, "s", 1.0),
            ("shuffled_mask", "random mask", PURPLE, "^", 0.89),
        ]
        for arm, name, color, marker, shift in arms:
            _points(panel, _arm(moved, arm), name, color, marker, shift)
        _finish(panel, title, rows)
        panel.set_ylim(-2.1, 1.35)  # leave room for the legend below the points
        panel.legend(loc="lower left", fontsize=9)
    axes[0].set_ylabel("gain in test accuracy over the\ndense network of the same seed (points)")
    axes[1].set_ylabel("")
    return figure


def _with_tickets(folder: str) -> tuple[Figure, Axes, pd.DataFrame]:
    """Plot the dense networks and tickets of a replication; return the figure, its axes and the rows of `compare`."""
    rows = compare(load_results(HERE / folder))
    figure, (axes,) = _panels(1)
    _dense(axes, rows)
    _line(axes, _arm(rows, "ticket"), "ticket", BLUE, "o")
    return figure, axes, rows


def _panels(count: int) -> tuple[Figure, Sequence[Axes]]:
    figure, axes = plt.subplots(1, count, figsize=(9.2, 3.7) if count == 1 else (10.5, 4.2), sharey=True, squeeze=False)
    return figure, list(axes[0])


def _arm(rows: pd.DataFrame, arm: str) -> pd.DataFrame:
    return rows[rows["arm"] == arm].sort_values("density", ascending=False)


def _dense(axes: Axes, rows: pd.DataFrame) -> None:
    dense = _arm(rows, "dense").iloc[0]
    axes.axhspan(
        100 * dense["test_accuracy_low"], 100 * dense["test_accuracy_high"], color=GREY, alpha=0.13, linewidth=0
    )
    axes.axhline(100 * dense["test_accuracy"], color=GREY, linewidth=1, linestyle="--", label="dense network")


def _line(axes: Axes, rows: pd.DataFrame, label: str, color: str, marker: str, column: str = "test_accuracy") -> None:
    x, mean, low, high = rows["density"], *(100 * rows[name] for name in (column, f"{column}_low", f"{column}_high"))
    axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    axes.plot(x, mean, color=color, marker=marker, markersize=5, linewidth=1.8, label=label)


def _points(axes: Axes, rows: pd.DataFrame, label: str, color: str, marker: str, shift: float) -> None:
    mean, low, high = (100 * rows[f"test_accuracy_gain{end}"] for end in ("", "_low", "_high"))
    axes.errorbar(
        rows["density"] * shift, mean, [mean - low, high - mean], color=color, marker=marker, linestyle="", label=label
    )


def _percent(density: float) -> str:
    return f"{round(100 * density, 1):g}%"


def _finish(
    axes: Axes, title: str, rows: pd.DataFrame, ticks: Sequence[float] = (1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
) -> None:
    axes.set_title(title, pad=12)
    axes.set_xscale("log")
    sparsest = rows["density"].min()
    axes.set_xlim(1.12, sparsest / 1.12)
    axes.xaxis.set_major_locator(FixedLocator([x for x in ticks if x > sparsest / 1.12]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _percent(x)))
    axes.set_xlabel("density: weights kept (sparser to the right)")
    axes.set_ylabel("test accuracy (%)")


FIGURES = {
    "mnist_lenet": mnist_lenet,
    "cifar10_conv2": cifar10_conv2,
    "cifar10_resnet20": cifar10_resnet20,
    "transfer": transfer,
}


def main() -> None:
    """Write every figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE.parent / "docs" / "figures")
    output: Path = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    mpl.use("Agg")
    files = [(name, name, STYLE) for name in FIGURES] + [("mnist_lenet", "mnist_lenet_dark", DARK)]
    for figure, name, style in files:
        with mpl.rc_context(style):
            FIGURES[figure]().savefig(output / f"{name}.svg", metadata={"Date": None})
            plt.close("all")


if __name__ == "__main__":
    main()
