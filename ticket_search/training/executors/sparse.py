"""An executor that computes with the kept weights of fully connected layers only. It needs no GPU."""

from torch import Tensor, nn

from ticket_search.config.user_error import one_line
from ticket_search.errors import SpecError
from ticket_search.tasks.images import ImageTask
from ticket_search.training.executors.plain import train
from ticket_search.training.fully_connected import fully_connected_layers
from ticket_search.training.lane import UpdatingLane
from ticket_search.training.outcome import LevelOutputs
from ticket_search.training.request import TrainRequest


class SparseExecutor:
    """Trains one request at a time, in time that follows the number of kept weights; see `Executor`."""

    name = "sparse"
    lanes = 1

    def __init__(self) -> None:
        self._held: list[TrainRequest] = []

    def submit(self, request: TrainRequest) -> None:
        """Put a request at the end of the queue."""
        self._held.append(request)

    def advance(self) -> list[tuple[TrainRequest, LevelOutputs]]:
        """Train the first request in the queue, and return it with its outputs."""
        request = self._held.pop(0)
        return [(request, train(request, sparse_lane))]


def sparse_lane(request: TrainRequest) -> UpdatingLane:
    """Create the lane for a request: compiled as a whole for fully connected networks, layer by layer for others."""
    # Imported here, because numba takes 0.3 s to import, and other executors do not need it.
    from ticket_search.training.sparse.lane import SparseLane
    from ticket_search.training.sparse.module import ModuleLane

    layers = fully_connected_layers(request.network)
    if layers is not None and type(request.task) is ImageTask:
        return SparseLane(request, request.task, layers)
    return ModuleLane(request)


def check_network(network: nn.Module, model: str, example: Tensor | None) -> None:
    """Check that `SparseExecutor` can train a network.

    Args:
        network: the network, on the CPU.
        model: the model's name in the search space.
        example: inputs for running the network once; None skips the run.

    Raises:
        SpecError: the network has no fully connected layer that can be sparse, or does not run with sparse layers.
    """
    import torch

    from ticket_search.training.sparse.module import sparse_candidates, with_sparse_layers

    names = [f"{name}.weight" for name in sparse_candidates(network)]
    if not names:
        raise SpecError(
            "training.executor: 'sparse' needs fully connected layers (torch.nn.Linear, with a bias, in float32) that "
            f"share no parameter with other layers, but model {model!r} has none; give executor 'plain' or 'auto'"
        )
    if example is None:
        return
    empty = {name: torch.zeros(network.get_parameter(name).shape, dtype=torch.bool) for name in names}
    sparse, _ = with_sparse_layers(network, empty)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            sparse.eval()(example)
    except SpecError:
        raise
    except Exception as error:
        raise SpecError(
            f"training.executor: model {model!r} does not run with the layers of executor 'sparse': "
            f"{one_line(error)}; give executor 'plain'"
        ) from error
