"""What a search asks of the place where its trajectories run, and the three places that there are."""

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
    """Runs trajectories, and calls functions, in worker processes or in this one.

    `launch.run` and `follow_up.stability` call it. An engine decides where work runs and what to do when a worker dies;
    what to run next and what a result means is the `SearchDriver`'s to decide.
    """

    def plan(self, spec: SearchSpec) -> list[str]:
        """How the trajectories will be placed, as lines for the user.

        Raises:
            SpecError: no place there is, or could be, can take one.
        """

    def check_storage(self, place: Place) -> None:
        """See that every machine that may run a trajectory reaches the run directory and the store.

        Raises:
            SpecError: one does not; names it.
        """

    def share(self, data: Mapping[Any, Any]) -> Shared:
        """Make data readable in every worker without a copy for each; the result goes into a `Job`."""

    def run(self, search: SearchDriver, place: Place, data: Shared) -> None:
        """Run what the search hands out, and report what comes of it, until there is no more or it is to stop.

        Raises:
            TicketSearchError: the search cannot continue; finished levels are kept.
        """

    def call(
        self, function: Callable[..., T], calls: Sequence[tuple[Any, ...]], spec: SearchSpec, done: str, say: Say
    ) -> list[T]:
        """Call a function of this package in the workers, each call with the resources of a trajectory.

        Args:
            function: what to call.
            calls: the arguments of each call.
            spec: a search; a call whose worker died is made again as often as its ``max_failures``.
            done: the verb of what a call has done, for the lines to `say`.
            say: receives a line for each call that has ended.

        Raises:
            TicketSearchError: a call raised, or its workers died; the others are abandoned.
        """


def is_local(name: str, address: str | None) -> bool:
    """Whether trajectories will run on this machine, so that its processors and GPUs are all there is.

    Raises:
        SpecError: there is no such engine, or it takes no address.
    """
    if name not in NAMES:
        raise SpecError(unknown("engine", name, NAMES))
    if name != "ray" and address is not None:
        raise SpecError(f"--address {address!r} is of a Ray cluster, which engine {name!r} does not use; leave it out")
    return name != "ray" or cluster_address(address) is None


@contextmanager
def open_engine(name: str, address: str | None = None, *, room: int = 0) -> Iterator[Engine]:
    """The engine of a name, ready to run; its workers end with the block.

    Args:
        name: one of `NAMES`.
        address: of a Ray cluster; see `engines.ray.connection.connect`.
        room: bytes of data that will be shared.

    Raises:
        SpecError: there is no such engine, or it cannot be reached.
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
