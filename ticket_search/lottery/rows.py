"""A finished level as rows of the tables."""

from dataclasses import asdict
from typing import Any

from ticket_search.config.identity import trajectory_id
from ticket_search.config.trajectory import TrajectorySpec
from ticket_search.lottery.level import Level
from ticket_search.pruning.masks import kept_weights, prunable_weights
from ticket_search.results.verdict import is_matching

Row = dict[str, Any]


def level_row(spec: TrajectorySpec, level: Level, dense: Level, tolerance: float) -> Row:
    """The row of `levels`, without columns of other searched fields.

    Args:
        spec: of the trajectory.
        level: the level.
        dense: the dense network of the same trajectory, `Level.dense` of level 0.
        tolerance: how far below the dense network's validation accuracy a ticket still matches.
    """
    kept, prunable = kept_weights(level.mask), prunable_weights(level.mask)
    return {
        "trajectory_id": trajectory_id(spec),
        "level_key": level.key,
        "level": level.number,
        **configuration(spec),
        "kept_weights": kept,
        "prunable_weights": prunable,
        "density": kept / prunable,
        "compression": prunable / kept,
        "val_loss": level.val_loss,
        "val_accuracy": level.val_metric,
        "test_loss": level.test_loss,
        "test_accuracy": level.test_metric,
        "dense_val_accuracy": dense.val_metric,
        "dense_test_accuracy": dense.test_metric,
        "matching": is_matching(level.val_metric, dense.val_metric, tolerance),
        "early_stop_iteration": level.early_stop_iteration,
        "early_stop_test_accuracy": level.early_stop_test_metric,
        "iterations": level.iterations,
        "train_seconds": level.train_seconds,
        "reused": level.reused,
    }


def control_rows(spec: TrajectorySpec, level: Level) -> list[Row]:
    """The rows of `controls`: one for each control of the level's ticket."""
    return [
        {
            "trajectory_id": trajectory_id(spec),
            "level": level.number,
            "control": control.kind,
            "draw": control.draw,
            "level_key": control.level.key,
            "seed": spec.seed,
            "density": kept_weights(level.mask) / prunable_weights(level.mask),
            "val_loss": control.level.val_loss,
            "val_accuracy": control.level.val_metric,
            "test_loss": control.level.test_loss,
            "test_accuracy": control.level.test_metric,
            "early_stop_iteration": None if control.level.diverged else control.level.early_stop_iteration,
            "early_stop_test_accuracy": control.level.early_stop_test_metric,
            "iterations": control.level.iterations,
            "train_seconds": control.level.train_seconds,
            "reused": control.level.reused,
        }
        for control in level.controls
    ]


def configuration(spec: TrajectorySpec) -> Row:
    """The columns that `levels` and `trajectories` share: what was run."""
    pruning = spec.pruning
    return {
        "pruning_rate": pruning.pruning_rate,
        "strategy": pruning.strategy,
        "criterion": pruning.criterion,
        "rewind_iteration": pruning.rewind_iteration,
        "seed": spec.seed,
    }


def curve_rows(spec: TrajectorySpec, level: Level) -> list[Row]:
    """The rows of `curves`: one for each evaluation."""
    return [
        {
            "trajectory_id": trajectory_id(spec),
            "level": level.number,
            "iteration": point.iteration,
            "train_loss": point.train_loss,
            "val_loss": point.val_loss,
            "val_accuracy": point.val_metric,
        }
        for point in level.curve
    ]


def early_bird_rows(spec: TrajectorySpec, level: Level) -> list[Row]:
    """The rows of `early_bird`: one for each two masks that were compared."""
    return [{"trajectory_id": trajectory_id(spec), **asdict(each)} for each in level.mask_distances]


def layer_rows(spec: TrajectorySpec, level: Level) -> list[Row]:
    """The rows of `layers`: one for each prunable tensor."""
    rows = []
    for name, mask in level.mask.items():
        kept, weights = int(mask.sum()), mask.numel()
        row = {"trajectory_id": trajectory_id(spec), "level": level.number, "name": name}
        rows.append(row | {"kept_weights": kept, "weights": weights, "density": kept / weights})
    return rows
