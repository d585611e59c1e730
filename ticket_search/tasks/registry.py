"""A task from its name."""

from collections.abc import Callable
from pathlib import Path

from ticket_search.config.base import unknown
from ticket_search.config.imports import load_function, source_digest
from ticket_search.config.trajectory import TASKS, USER_FUNCTION, TrajectorySpec
from ticket_search.errors import SpecError
from ticket_search.tasks.task import Task, TaskKind


def task_kind(name: str) -> TaskKind:
    """The kind of task of a name: one of `TASKS`, or ``package.module:function``, called without arguments.

    Raises:
        SpecError: there is none of that name, or a user's function fails or gives something else.
    """
    if make := _KINDS.get(name):
        return make()
    if not USER_FUNCTION.fullmatch(name):
        raise SpecError(unknown("task", name, [*TASKS, "package.module:function"]))
    function = load_function(name)
    try:
        kind = function()
    except (Exception, SystemExit) as error:
        raise SpecError(f"task {name!r}: the function raised {type(error).__name__}: {error}") from error
    if not isinstance(kind, TaskKind):
        raise SpecError(f"task {name!r}: the function returned {kind!r:.80}, not a ticket_search.tasks.task.TaskKind")
    return kind


def task_digest(name: str) -> str:
    """A digest of the source of a user's own task; "" for the tasks of this package.

    Raises:
        SpecError: the user's module cannot be imported.
    """
    return source_digest(name) if USER_FUNCTION.fullmatch(name) else ""


def load_task(spec: TrajectorySpec, data_dir: Path, device: str = "cpu") -> Task:
    """The task of a trajectory, its data read from `data_dir` and put on a device.

    Raises:
        DataError: as `TaskKind.read`.
        SpecError: as `task_kind`.
    """
    kind = task_kind(spec.task)
    return kind.on(spec.dataset, kind.read(spec.dataset, data_dir), device)


def _classification() -> TaskKind:
    from ticket_search.tasks.classification import Classification

    return Classification()


#: Each is imported when it is asked for: reading images loads pyarrow.
_KINDS: dict[str, Callable[[], TaskKind]] = {"classification": _classification}
