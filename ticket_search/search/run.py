"""Run a search in a directory, from its beginning or from wherever it stopped."""

from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from ticket_search.errors import SpecError, TicketSearchError
from ticket_search.search import preflight
from ticket_search.search.job import store_path
from ticket_search.search.run_directory import check_same_search, check_writable, hold, missing_folders, remove
from ticket_search.search.search import Listener, Progress, Search
from ticket_search.spec.search import SearchSpec


def run_search(
    spec: SearchSpec,
    run_dir: Path,
    *,
    address: str | None = None,
    listener: Listener = lambda progress, row: None,
    on_start: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Run a search to its end.

    Args:
        spec: what to search.
        run_dir: where the results go; a directory that holds this search is gone on from.
        address: of a Ray cluster; see `on_ray.connect`.
        listener: told of every trajectory that ends, with its row of `trajectories`.
        on_start: given, once, the object that says where the search stands from then on.

    Returns:
        Where the search stands at its end.

    Raises:
        SpecError: the search cannot be run as written; nothing was started and nothing is left behind.
        TicketSearchError: it had to stop half-way, for want of room on the disk, say; run it again to go on.
    """
    check_same_search(run_dir, spec)
    check_writable(run_dir)
    check_writable(store_path(spec, run_dir))
    preflight.check(spec, local=preflight.cluster_address(address) is None)
    from ticket_search.search.on_ray import check_resources, connect, run_on_ray

    missing = missing_folders(run_dir)
    with hold(run_dir, spec) as is_new, ExitStack() as stack:
        try:
            search = Search(spec, run_dir, listener)
            on_start(search.progress)
            stack.enter_context(connect(address))
            check_resources(spec.resources)
        except SpecError:
            if is_new and missing:
                remove(run_dir, missing)
            raise
        except OSError as error:
            raise _stopped(error) from error
        try:
            run_on_ray(search, run_dir)
            search.flush()
        except OSError as error:
            raise _stopped(error) from error
        except BaseException:
            with suppress(OSError):  # the error under way says more
                search.flush()
            raise
        return search.progress


def _stopped(error: OSError) -> TicketSearchError:
    return TicketSearchError(f"the search had to stop, and what was finished is kept: {error}")
