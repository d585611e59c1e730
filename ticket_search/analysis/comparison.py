"""Compares tickets with their dense networks and controls, with confidence intervals over seeds.

The spread between seeds is as large as the effect, so every comparison is paired: a ticket is compared with the dense
network and the controls of its own seed.
"""

import math
from collections.abc import Iterable
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ticket_search.analysis.measure import Measure, measure_of
from ticket_search.results.figures import ALWAYS_NAMED, CONFIGURATION_NAMES
from ticket_search.results.reading import Results
from ticket_search.results.schema import schemas

_DRAWS = 10_000
#: The arms that are not controls.
TRAJECTORY_ARMS = ("dense", "early_bird", "ticket")


def interval(values: Iterable[float], *, confidence: float = 0.95, seed: int = 0) -> tuple[float, float, float]:
    """Return the mean of the values and the ends of its bootstrap interval.

    The bootstrap draws seeds with replacement. The ends are expanded percentiles (Hesterberg 2015, section 3.4). In a
    test with 2,000 samples of five values from a normal distribution, nominal 95% intervals from the usual percentiles
    covered the true mean 84% of the time, and those from expanded percentiles 92%. With two or three values, there are
    too few different draws for either method, so the ends are the smallest and the largest value. These intervals
    covered the true mean 51% of the time with two values, and 76% with three.

    Args:
        values: one value per seed. With fewer than two values, the ends are nan.
        confidence: the nominal coverage of the interval, in (0, 1).
        seed: the seed of the bootstrap's random draws.
    """
    sample = np.asarray(list(values), dtype=np.float64)
    if len(sample) < 2:
        return (float(sample.mean()) if len(sample) else np.nan), np.nan, np.nan
    low, high = np.quantile(_resampled(sample, seed).mean(axis=1), _percentiles(len(sample), confidence))
    return float(sample.mean()), float(low), float(high)


def ratio_of_means(
    numerators: Iterable[float], denominators: Iterable[float], *, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """Return ``mean(numerators) / mean(denominators)``, paired by seed, and the ends of its bootstrap interval."""
    pairs = np.column_stack([np.asarray(list(numerators), float), np.asarray(list(denominators), float)])
    if len(pairs) < 2:
        return (float(pairs[0, 0] / pairs[0, 1]) if len(pairs) else np.nan), np.nan, np.nan
    means = _resampled(pairs, seed).mean(axis=1)
    low, high = np.quantile(means[:, 0] / means[:, 1], _percentiles(len(pairs), confidence))
    return float(pairs[:, 0].mean() / pairs[:, 1].mean()), float(low), float(high)


def crossed(values: NDArray[np.float64], *, confidence: float = 0.95, seed: int = 0) -> tuple[float, float, float]:
    """Return the mean over all (ticket, seed) pairs, and the ends of its bootstrap interval.

    Tickets and seeds are drawn with replacement, independently of each other (the pigeonhole bootstrap, Owen 2007,
    arXiv 0712.1111). The interval therefore accounts for the noise of both, and tends to be too wide.

    Args:
        values: ``[tickets, seeds]``, nan where a value is missing. With a single ticket, the result equals `interval`
            over the seeds; with a single seed, it equals `interval` over the tickets.
        confidence: the nominal coverage of the interval, in (0, 1).
        seed: the seed of the bootstrap's random draws.
    """
    return crossed_ratio(values, np.ones_like(values), confidence=confidence, seed=seed)


def crossed_ratio(
    numerators: NDArray[np.float64], denominators: NDArray[np.float64], *, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """Return ``mean(numerators) / mean(denominators)`` and the ends of its interval, computed as in `crossed`.

    Both arrays have the shape ``[tickets, seeds]``. A pair counts only if neither of its values is nan.
    """
    in_both = ~(np.isnan(numerators) | np.isnan(denominators))
    top, bottom = np.where(in_both, numerators, 0.0), np.where(in_both, denominators, 0.0)
    if not in_both.any():
        return np.nan, np.nan, np.nan
    ratio = float(top.sum() / bottom.sum())
    sizes = [size for size in (int(in_both.any(axis=1).sum()), int(in_both.any(axis=0).sum())) if size > 1]
    if not sizes:
        return ratio, np.nan, np.nan
    generator = np.random.default_rng(seed)
    # The number of times each ticket and each seed is drawn: ``[draws, tickets]`` and ``[draws, seeds]``.
    rows, columns = (generator.multinomial(size, np.full(size, 1 / size), size=_DRAWS) for size in top.shape)
    above, below = (((rows @ part) * columns).sum(axis=1) for part in (top, bottom))
    drawn = above[below > 0] / below[below > 0]
    low, high = np.quantile(drawn, _percentiles(min(sizes), confidence))
    return ratio, float(low), float(high)


def compare(results: Results) -> pd.DataFrame:
    """Summarize each arm at each level over its seeds.

    The arms are ``dense`` (level 0), ``ticket``, and each kind of control. If early-bird ended the training of level 0,
    the arm of level 0 is ``early_bird``, and ``dense`` is the control that trains the dense network for all iterations.

    A seed counts at a level only if its trajectory reached that level; the column ``seeds`` contains the number of such
    seeds. If early stopping ended the other trajectories, the seeds that remain are the better ones, and the means are
    too optimistic. To support a claim, run the search with ``early_stopping: null``.

    Args:
        results: the tables of a search. A control with several draws counts once per seed, as the mean of its draws.

    Returns:
        A row for each configuration, level and arm, with the configuration and these columns:

        - ``level``, ``density``, ``arm``, and ``seeds`` (the number of seeds).
        - ``test_accuracy`` (after the last iteration), ``early_stop_test_accuracy`` and ``early_stop_iteration``: the
          mean, with the ends of its 95% interval over seeds in ``..._low`` and ``..._high``, as for all columns below.
        - ``..._gain`` for both accuracies: how much better the arm is than the dense network of the same seed.
        - ``..._lead`` for both accuracies of a control: how much better the ticket of the same seed is.
        - ``speed``: the dense network's early-stop iteration divided by the arm's, as a ratio of means;
          ``speed_mean_of_ratios``: the mean of the seeds' ratios, without an interval.
        - ``slowdown`` of a control: its early-stop iteration divided by the ticket's.

        If the task's metric is not accuracy, the columns are named ``test_metric`` instead of ``test_accuracy``. A
        positive gain or lead always means better, even if a lower metric is better.
    """
    measure = measure_of(results.levels)
    # Rows written by older versions have nulls in some of these columns, which would split a configuration in two.
    always_named = results.levels.reindex(columns=list(ALWAYS_NAMED)).dropna(axis="columns").columns
    fixed = set(schemas({})["levels"].names) - set(always_named)
    configuration = [*CONFIGURATION_NAMES, *(name for name in results.levels.columns if name not in fixed)]
    rows: list[dict[str, Any]] = []
    for values, levels in results.levels.groupby(configuration, sort=True, dropna=False):
        controls = results.controls[results.controls["trajectory_id"].isin(levels["trajectory_id"])]
        full = controls[controls["control"] == "dense"]  # empty unless early-bird ended level 0
        dense = (levels[levels["level"] == 0] if full.empty else full).set_index("seed")
        for level, tickets in levels.groupby("level", sort=True):
            ticket = tickets.set_index("seed")
            head = dict(zip(configuration, values, strict=True)) | {"level": int(tickets["level"].iloc[0])}
            first = "dense" if full.empty else "early_bird"
            arms = {first if head["level"] == 0 else "ticket": ticket}
            for kind, drawn in controls[controls["level"] == level].groupby("control", sort=True):
                arms[str(kind)] = drawn.groupby("seed")[list(measure.figures)].mean()
            head["density"] = float(ticket["density"].mean())
            rows += [head | {"arm": arm} | _figures(arm, found, ticket, dense, measure) for arm, found in arms.items()]
    return pd.DataFrame(rows)


def _figures(
    arm: str, found: pd.DataFrame, ticket: pd.DataFrame, dense: pd.DataFrame, measure: Measure
) -> dict[str, Any]:
    # A control that diverged has no figures, and is treated as missing.
    found = found.dropna(subset=[measure.final])
    seeds = found.index.intersection(dense.index)
    row: dict[str, Any] = {"seeds": len(found)}
    for name in measure.figures:
        row |= _with_ends(name, interval(found[name]))
    for name in measure.columns:
        row |= _with_ends(f"{name}_gain", interval(measure.lead(found.loc[seeds, name], dense.loc[seeds, name])))
        if arm not in TRAJECTORY_ARMS:
            row |= _with_ends(f"{name}_lead", interval(measure.lead(ticket[name], found[name]).dropna()))
    if arm not in TRAJECTORY_ARMS:
        seeds_of_both = found.index.intersection(ticket.index)
        both = (frame.loc[seeds_of_both, "early_stop_iteration"] for frame in (found, ticket))
        row |= _with_ends("slowdown", ratio_of_means(*both))
    iterations = dense.loc[seeds, "early_stop_iteration"], found.loc[seeds, "early_stop_iteration"]
    row |= _with_ends("speed", ratio_of_means(*iterations))
    row["speed_mean_of_ratios"] = float((iterations[0] / iterations[1]).mean())
    return row


def _with_ends(name: str, found: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))


@lru_cache
def _percentiles(n: int, confidence: float) -> list[float]:
    """Return the expanded percentiles: normal probabilities at the quantiles of Student's t for n values."""
    x = np.linspace(0.0, 1000.0, 1_000_001)
    scale = math.exp(math.lgamma(n / 2) - math.lgamma((n - 1) / 2)) / math.sqrt((n - 1) * math.pi)
    density = scale * (1 + x**2 / (n - 1)) ** (-n / 2)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2 * (x[1] - x[0]))])
    t = float(np.interp(confidence / 2, mass, x))
    low = NormalDist().cdf(-math.sqrt(n / (n - 1)) * t)
    return [low, 1 - low]


def _resampled(sample: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Return bootstrap samples ``[draws, n, ...]`` of a sample ``[n, ...]``."""
    return sample[np.random.default_rng(seed).integers(len(sample), size=(_DRAWS, len(sample)))]
