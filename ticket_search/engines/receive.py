"""Gets jobs from a search and passes reports back to it, for the engines that schedule work themselves."""

from ticket_search.engines.job import Job, Shared, make_job
from ticket_search.engines.place import Place
from ticket_search.engines.worker import Report
from ticket_search.errors import StorageError
from ticket_search.search.driver import SearchDriver
from ticket_search.search.reports import EndReport, HaltReport, LevelReport, NotShared, NotStarted


def next_job(search: SearchDriver, place: Place, data: Shared) -> Job | None:
    """Return the job of the search's next suggestion, or None if it has no suggestion at the moment."""
    suggestion = search.next()
    if suggestion is None:
        return None
    trajectory = search.spec.trajectory_at(suggestion.values, suggestion.seed)
    return make_job(search.spec, suggestion.number, trajectory, place.run_dir, place.run_id, data=data)


def died(search: SearchDriver, how: str, error: str | None) -> EndReport:
    """Return the end report of a trajectory whose workers died more often than `max_failures` allows.

    Args:
        search: the search.
        how: how the last worker died; "" if unknown.
        error: the last worker's output or other details; may have several lines.
    """
    reason = f"its worker died {times(search.spec.search.max_failures + 1)}" + (f": {how}" if how else "")
    return EndReport(status="failed", reason=reason, error=f"{reason}\n{error or ''}".strip())


def times(count: int) -> str:
    """Return ``once``, ``2 times``, ``3 times`` and so on."""
    return "once" if count == 1 else f"{count} times"


def receive(search: SearchDriver, number: int, report: Report) -> bool:
    """Pass a worker's report to the search.

    Returns:
        Whether the trajectory continues; False if it has ended or was stopped, or if the search is ending.
    """
    if isinstance(report, LevelReport):
        reason = search.level_finished(number, report)
        if reason is not None:
            search.ended(number, EndReport(status="stopped", reason=reason))
        return reason is None and not search.is_ending
    if isinstance(report, NotStarted):
        search.progress.stopped = True
    elif isinstance(report, HaltReport | NotShared):
        # All workers are on this machine, so every other worker would fail too.
        search.halt(StorageError(report.reason))
    else:
        search.ended(number, report)
    return False
