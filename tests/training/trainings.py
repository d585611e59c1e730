"""Train and evaluate networks without a trajectory."""

from ticket_search.training.executors.plain import PlainExecutor
from ticket_search.training.request import TrainRequest


def train_levels(levels, network, task, training, checkpoints=None):
    """Train levels of one architecture with the plain executor; `checkpoints` is None or has an item for each level."""
    executor, outputs = PlainExecutor(), []
    for level, place in zip(levels, checkpoints or [None] * len(levels), strict=True):
        executor.submit(
            TrainRequest(level=level, network=network, task=task, training=training, key="", checkpoints=place)
        )
        outputs += [done for _, done in executor.advance()]
    return outputs


def evaluate(network, task, split):
    """Return the loss and the metric of a network on a split."""
    score = task.score(network, split, "fp32")
    return score.loss, score.value
