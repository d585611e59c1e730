"""An engine that runs trajectories on Ray: on a cluster, or on this machine."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from ticket_search.config.search import SearchSpec
from ticket_search.engines.job import Shared
from ticket_search.engines.place import Place
from ticket_search.engines.ray import nodes
from ticket_search.engines.ray.connection import connect, on_each_other_node, on_each_worker, share
from ticket_search.engines.ray.tune_hooks import run_on_ray
from ticket_search.runs.sharing import check_shared
from ticket_search.search.driver import SearchDriver

T = TypeVar("T")


@contextmanager
def open_ray(address: str | None, *, room: int = 0) -> Iterator["RayEngine"]:
    """Open the engine with a connection to Ray; see `connection.connect`."""
    with connect(address, room=room):
        yield RayEngine()


class RayEngine:
    """Runs trajectories on the connected Ray cluster; see `Engine`."""

    def plan(self, spec: SearchSpec) -> list[str]:
        """See `Engine`."""
        return nodes.plan(spec)

    def check_storage(self, place: Place) -> None:
        """See `Engine`."""
        on_each_other_node(check_shared, (str(place.store), str(place.run_dir), place.run_id))

    def share(self, data: Mapping[Any, Any]) -> Shared:
        """See `Engine`."""
        return share(dict(data))

    def run(self, search: SearchDriver, place: Place, data: Shared) -> None:
        """See `Engine`."""
        run_on_ray(search, place.run_dir, place.run_id, data=data)

    def call(
        self,
        function: Callable[..., T],
        calls: Sequence[tuple[Any, ...]],
        spec: SearchSpec,
        done: str,
        say: Callable[[str], None],
    ) -> list[T]:
        """See `Engine`."""
        return on_each_worker(function, calls, spec, done, say)
