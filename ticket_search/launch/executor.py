"""Choose the executor of a search whose ``training.executor`` is ``auto``."""

from collections.abc import Iterable

from ticket_search.config.executors import CHOICE_DEPENDS_ON, best_executor
from ticket_search.config.search import SearchSpec
from ticket_search.config.space import dotted
from ticket_search.config.trajectory import TrajectorySpec
from ticket_search.runs.directory import SPEC_FILE, read_spec
from ticket_search.storage.folder import Folder


def with_executor(run_dir: Folder, spec: SearchSpec) -> SearchSpec:
    """Return the search with ``auto`` replaced by the fastest executor that can train all its points.

    If the run directory already contains a search, its executor is kept. In the directories of earlier versions that
    is ``auto``, which means ``plain``.

    Args:
        run_dir: the run directory.
        spec: the search.
    """
    if spec.training.executor != "auto" or "training.executor" in map(dotted, spec.space):
        return spec
    if run_dir.read(SPEC_FILE) is not None:
        executor = read_spec(run_dir).training.executor
    else:
        choices = {best_executor(trajectory, spec.resources.gpus) for trajectory in _trajectories(spec)}
        executor = choices.pop() if len(choices) == 1 else "plain"
    return spec.model_copy(update={"training": spec.training.model_copy(update={"executor": executor})})


def _trajectories(spec: SearchSpec) -> Iterable[TrajectorySpec]:
    points = spec.points_to_check()
    if not CHOICE_DEPENDS_ON & set(map(dotted, spec.space)):  # then all points have the same choice
        points = list(points)[:1]
    return (spec.trajectory_at(values, spec.seeds[0]) for values in points)
