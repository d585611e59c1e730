"""Which executor suits a trajectory. This module does not import torch."""

from ticket_search.config.settings import ResourcesSpec
from ticket_search.config.trajectory import FULLY_CONNECTED, TrajectorySpec
from ticket_search.errors import SpecError

#: The number of lanes of the executor ``stacked`` if `ResourcesSpec.lanes` is null.
STACKED_LANES = 16

#: The fields that `best_executor` depends on, by their dotted paths.
CHOICE_DEPENDS_ON = {"model.name", "training.precision", "pruning.reinit_pruned"}


def best_executor(trajectory: TrajectorySpec, gpus: float) -> str:
    """Return the name of the fastest executor for a trajectory.

    Args:
        trajectory: the trajectory.
        gpus: the GPUs that it uses.
    """
    suits = FULLY_CONNECTED.fullmatch(trajectory.model.name) and _obstacle(trajectory, gpus) is None
    return "sparse" if suits and trajectory.task == "classification" else "plain"


def check_executor(trajectory: TrajectorySpec, gpus: float) -> None:
    """Check that a trajectory's settings suit its executor.

    Args:
        trajectory: the trajectory.
        gpus: the GPUs that it uses.

    Raises:
        SpecError: the executor cannot train the trajectory.
    """
    if trajectory.training.executor == "sparse" and (obstacle := _obstacle(trajectory, gpus)):
        raise SpecError(f"training.executor: 'sparse' {obstacle}")


def _obstacle(trajectory: TrajectorySpec, gpus: float) -> str | None:
    """Return why executor ``sparse`` cannot train a trajectory, and what to change; None if it can."""
    if gpus:
        return f"trains on the CPU, but resources.gpus is {gpus:g}; give executor 'plain' or 'auto', or gpus 0"
    if trajectory.training.precision != "fp32":
        return f"computes in fp32, but training.precision is {trajectory.training.precision!r}; give executor 'plain'"
    if trajectory.pruning.reinit_pruned != "zero":
        return (
            "stores only the kept weights, but pruning.reinit_pruned "
            f"{trajectory.pruning.reinit_pruned!r} gives the pruned ones values; give executor 'plain'"
        )
    return None


def check_lanes(executor: str, resources: ResourcesSpec) -> None:
    """Check that an executor of this package can train as many trajectories together as the resources say.

    Raises:
        SpecError: it trains only one.
    """
    if executor in ("plain", "sparse") and (resources.lanes or 1) > 1:
        raise SpecError(
            f"resources.lanes: executor {executor!r} trains one trajectory at a time, not {resources.lanes}; "
            "give lanes 1, or training.executor 'stacked'"
        )
