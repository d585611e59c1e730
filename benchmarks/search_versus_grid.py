"""Measure how many training iterations a search needs to find a ticket about as sparse as a grid search's sparsest one.

The space has 4 pruning rates, 2 strategies, 3 rewind iterations and 3 seeds, on the digits. First, a grid search trains
every trajectory to its end. Then several searches of each kind (a sampler with or without early stopping) run 24
trials in the same space; searches of the same kind differ in their sampler seed. To save time, all searches reuse
levels from the store of the grid search. When a search requests a level for the first time, the iterations of the level
are counted as if the search had trained it.

The goal is a matching ticket at most one level denser than the sparsest matching ticket of the grid, that is, at most
as dense as the level before that ticket in its trajectory.

    python benchmarks/search_versus_grid.py [--searches 10] [--work DIR]
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import pandas as pd
from machine import describe

from ticket_search import load_results
from ticket_search.config.loading import load_search
from ticket_search.engines.ray.connection import connect
from ticket_search.launch.run import run_search
from ticket_search.results.events import read_events

SPACE = Path(__file__).parents[1] / "search_spaces" / "digits.yaml"
GRID = ("space.pruning_rate=[0.2, 0.3, 0.4, 0.5]",)
KINDS = {
    "tpe, early stopping (the default)": (),
    "random, early stopping": ("search.sampler=random",),
    "tpe": ("search.early_stopping=null",),
    "random": ("search.sampler=random", "search.early_stopping=null"),
}


def course(run_dir: Path) -> pd.DataFrame:
    """Return a search's distinct levels in the order of their first request, with cumulative iteration counts."""
    asked = [e["level_key"] for e in read_events(run_dir) if e["event"] in ("level_finished", "level_reused")]
    order = {key: place for place, key in reversed(list(enumerate(asked)))}
    levels = load_results(run_dir).levels
    levels = levels.assign(place=levels["level_key"].map(order)).sort_values("place").drop_duplicates("level_key")
    return levels.assign(so_far=levels["iterations"].cumsum())


def reached(levels: pd.DataFrame, density: float) -> int | None:
    """Return the iteration count up to the first matching ticket of at most this density, or None if there is none."""
    found = levels[levels["matching"] & (levels["level"] > 0) & (levels["density"] <= density * (1 + 1e-9))]
    return None if found.empty else int(found["so_far"].iloc[0])


def main() -> None:
    """Run the grid and the searches, and print the measurements."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--searches", type=int, default=10)
    parser.add_argument("--work", type=Path, help="folder in which to keep the run directories")
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp())
    with connect(None):
        grid = load_search(SPACE, (*GRID, "search.sampler=grid", "search.trials=null", "search.early_stopping=null"))
        run_search(grid, work / "grid")
        whole = course(work / "grid")
        best = whole[whole["matching"] & (whole["level"] > 0)].sort_values("density").iloc[0]
        ladder = load_results(work / "grid").levels
        ladder = ladder[ladder["trajectory_id"] == best["trajectory_id"]].set_index("level")["density"]
        goal = ladder[best["level"] - 1]
        total = int(whole["iterations"].sum())
        print(describe("torch", "ray", "optuna"))
        print(
            f"grid: {len(load_results(work / 'grid').trajectories)} trajectories, {total} iterations in all; sparsest "
            f"matching density {best['density']:.4f}, goal {goal:.4f}; the grid's own order reaches it after "
            f"{reached(whole, goal)}"
        )
        print(f"{'search':<34} {'reached':>7}   {'share of the grid: to the goal':>30} {'in all':>6}   sparsest found")
        for kind, settings in KINDS.items():
            to_goal, in_all, sparsest = [], [], []
            for seed in range(arguments.searches):
                run_dir = work / f"{list(KINDS).index(kind)}_{seed}"
                own = (*settings, f"search.seed={seed}", f"store={work / 'grid' / 'store'}")
                run_search(load_search(SPACE, (*GRID, *own)), run_dir)
                levels = course(run_dir)
                needed = reached(levels, goal)
                to_goal.append(float("inf") if needed is None else needed / total)
                in_all.append(int(levels["iterations"].sum()) / total)
                sparsest.append(levels.loc[levels["matching"], "density"].min())
            hits = sum(share < float("inf") for share in to_goal)
            print(
                f"{kind:<34} {hits:>2} of {len(to_goal)}   median {statistics.median(to_goal):.2f}, min "
                f"{min(to_goal):.2f}, max {max(to_goal):.2f} {statistics.mean(in_all):>6.2f}   "
                f"mean {statistics.mean(sparsest):.4f}, worst {max(sparsest):.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
