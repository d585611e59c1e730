"""The interface of an engine, and a function that opens an engine by name. An engine runs a search's trajectories."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol, TypeVar, get_args

from ticket_search.config.base import unknown
from ticket_search.config.search import SearchSpec
from ticket_search.engines.address import cluster_address
from ticket_search.engines.job import Shared
from ticket_search.engines.place import Place
from ticket_search.errors import SpecError
from ticket_search.search.driver import SearchDriver

EngineName = Literal["inline", "processes", "ray"]
NAMES: tuple[EngineName, ...] = get_args(EngineName)

T = TypeVar("T")
Say = Callable[[str], None]


class Engine(Protocol):
    """Runs trajectories and calls functions, either in worker processes or in this process.

    `launch.run` and `follow_up.stability` use this interface. An engine decides where work runs and replaces workers
    that die; the `SearchDriver` decides what to run next and when to stop a trajectory.
    """

    def plan(self, spec: SearchSpec) -> list[str]:
        """Describe how the trajectories will be placed, as lines for the user.

        Raises:
            SpecError: neither an existing node nor one that could be started can run a trajectory.
        """

    def check_storage(self, place: Place) -> None:
        """Check that every machine that may run a trajectory can access the run directory and the store.

        Raises:
            SpecError: a machine cannot access them; the message names the machine.
        """

    def share(self, data: Mapping[Any, Any]) -> Shared:
        """Share data with all workers without giving each its own copy, and return the handle to put into a `Job`."""

    def run(self, search: SearchDriver, place: Place, data: Shared) -> None:
        """Run a search's trajectories and report their results, until no trajectory is left or the search must stop.

        Raises:
            TicketSearchError: the search cannot continue; finished levels are kept.
        """

    def call(
        self, function: Callable[..., T], calls: Sequence[tuple[Any, ...]], spec: SearchSpec, done: str, say: Say
    ) -> list[T]:
        """Call a function of this package in the workers; each call gets the resources of one trajectory.

        Args:
            function: the function to call.
            calls: the arguments of each call.
            spec: the search; its ``max_failures`` limits how many times a call is retried when its worker dies.
            done: the verb at the start of each progress line, such as ``trained`` in "trained 3 of 9".
            say: receives a progress line whenever a call ends.

        Raises:
            TicketSearchError: a call raised an error, or its workers died too often. The other calls are abandoned.
        """


def is_local(name: str, address: str | None) -> bool:
    """Return whether all trajectories will run on this machine.

    Raises:
        SpecError: there is no engine with this name, or an address was given for an engine that does not take one.
    """
    if name not in NAMES:
        raise SpecError(unknown("engine", name, NAMES))
    if name != "ray" and address is not None:
        raise SpecError(f"--address {address!r} is for engine 'ray', but the engine is {name!r}; leave --address out")
    return name != "ray" or cluster_address(address) is None


@contextmanager
def open_engine(name: str, address: str | None = None, *, room: int = 0) -> Iterator[Engine]:
    """Open the engine with this name; its workers exit when the block ends.

    Args:
        name: one of `NAMES`.
        address: the address of a Ray cluster; see `engines.ray.connection.connect`.
        room: the size in bytes of the data that will be shared.

    Raises:
        SpecError: there is no engine with this name, Ray is not installed, or the cluster cannot be reached.
    """
    is_local(name, address)
    if name == "inline":
        from ticket_search.engines.inline import InlineEngine

        yield InlineEngine()
    elif name == "processes":
        from ticket_search.engines.processes import open_processes

        with open_processes() as processes:
            yield processes
    else:
        try:
            from ticket_search.engines.ray.engine import open_ray
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "ray":
                raise
            raise SpecError("engine 'ray' needs Ray: pip install 'ray[tune]', or use engine 'processes'") from error
        with open_ray(address, room=room) as on_ray:
            yield on_ray
