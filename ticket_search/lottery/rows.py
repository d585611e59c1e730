"""The table rows of a finished level; `results.figures` declares the columns."""

from dataclasses import asdict, replace
from typing import Any

from ticket_search.config.identity import trajectory_id
from ticket_search.config.trajectory import TrajectorySpec
from ticket_search.lottery.level import Level
from ticket_search.results import figures
from ticket_search.results.figures import Finished
from ticket_search.tasks.metric import Metric

Row = dict[str, Any]


def level_row(spec: TrajectorySpec, level: Level, dense: Level, tolerance: float, metric: Metric) -> Row:
    """Return a level's row of the table `levels`, without the columns of searched fields.

    Args:
        spec: the trajectory's specification.
        level: the finished level.
        dense: the dense network of the same trajectory: `Level.dense` of level 0.
        tolerance: the amount by which a matching ticket's validation metric may be worse than the dense network's.
        metric: the task's metric.
    """
    finished = _finished(spec, level, dense, tolerance, metric)
    return {
        "trajectory_id": trajectory_id(spec),
        "level_key": level.key,
        "level": level.number,
        **figures.configuration(spec),
        **{figure.name: figure.of(finished) for figure in figures.FIGURES},
    }


def control_rows(spec: TrajectorySpec, level: Level, metric: Metric) -> list[Row]:
    """Return the rows of the table `controls`, one for each control of the level's ticket."""
    ticket = _finished(spec, level, level, 0.0, metric)
    return [
        {
            "trajectory_id": trajectory_id(spec),
            "level": level.number,
            "control": control.kind,
            "draw": control.draw,
            "level_key": control.level.key,
            "seed": spec.seed,
            "density": level.kept_weights / level.prunable_weights,
            **{
                figure.name: figure.of(replace(ticket, level=control.level))
                for figure in figures.FIGURES
                if figure.of_controls
            },
        }
        for control in level.controls
    ]


def curve_rows(spec: TrajectorySpec, level: Level, metric: Metric) -> list[Row]:
    """Return the rows of the table `curves`, one for each evaluation."""
    head = {"trajectory_id": trajectory_id(spec), "level": level.number}
    return [
        head | {figure.name: figure.value(point, metric) for figure in figures.CURVE_FIGURES} for point in level.curve
    ]


def early_bird_rows(spec: TrajectorySpec, level: Level) -> list[Row]:
    """Return the rows of the table `early_bird`, one for each pair of masks that was compared."""
    return [{"trajectory_id": trajectory_id(spec), **asdict(each)} for each in level.mask_distances]


def layer_rows(spec: TrajectorySpec, level: Level) -> list[Row]:
    """Return the rows of the table `layers`, one for each prunable tensor."""
    rows = []
    for name, mask in level.mask.items():
        kept, weights = int(mask.sum()), mask.numel()
        row = {"trajectory_id": trajectory_id(spec), "level": level.number, "name": name}
        rows.append(row | {"kept_weights": kept, "weights": weights, "density": kept / weights})
    return rows


def _finished(spec: TrajectorySpec, level: Level, dense: Level, tolerance: float, metric: Metric) -> Finished:
    return Finished(level=level, dense=dense, metric=metric, spec=spec, tolerance=tolerance)
