"""Run a search inside the test process, without an engine."""

from ticket_search.engines.job import make_job
from ticket_search.engines.worker import run_job
from ticket_search.launch.executor import with_executor
from ticket_search.runs.directory import hold
from ticket_search.runs.places import store_folder
from ticket_search.runs.store_use import register
from ticket_search.search.driver import SearchDriver
from ticket_search.search.reports import LevelReport
from ticket_search.storage.folder import open_folder


def run_by_hand(spec, run_dir, *, levels=None, flush=False, say=lambda notice: None):
    """Run a search in this process, either to its end or only until `levels` levels have finished.

    A search that ends early leaves the same files as a search whose process was killed. Its tables contain the last
    levels only if `flush` is true.
    """
    folder = open_folder(run_dir)
    spec = with_executor(folder, spec)
    with hold(folder, spec) as held:
        register(store_folder(spec, folder), folder, held.run, spec)
        driven = SearchDriver(spec, folder, say=say)
        while (suggestion := driven.next()) is not None:
            driven.started(suggestion.number)
            trajectory = spec.trajectory_at(suggestion.values, suggestion.seed)
            for report in run_job(make_job(spec, suggestion.number, trajectory, folder, held.run.run_id)):
                if not isinstance(report, LevelReport):
                    driven.ended(suggestion.number, report)
                    continue
                driven.level_finished(suggestion.number, report)
                if driven.progress.levels == levels:
                    if flush:
                        driven.flush()
                    return
        driven.flush()
