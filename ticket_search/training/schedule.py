"""The learning rate as a function of the iteration alone: rewinding to iteration k also rewinds the schedule."""

import math

from ticket_search.config.trajectory import TrainingSpec


def learning_rate(training: TrainingSpec, iteration: int) -> float:
    """Return the learning rate of update number `iteration`.

    Past the end of the schedule, the learning rate keeps its last value.

    Args:
        training: the training settings, with every duration in iterations.
        iteration: the number of the update, from 0.
    """
    schedule, total = training.schedule, int(training.iterations)
    iteration = min(iteration, total - 1)
    warmup = int(schedule.warmup)
    factor = min(1.0, (iteration + 1) / warmup) if warmup else 1.0
    match schedule.name:
        case "constant":
            pass
        case "step":
            factor *= schedule.gamma ** sum(iteration >= int(m) for m in schedule.milestones)
        case "cosine":
            progress = max(0, iteration - warmup) / max(1, total - warmup)
            factor *= 0.5 * (1 + math.cos(math.pi * progress))
    return training.optimizer.lr * factor
