"""Look up tasks by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ticket_search.config.base import unknown
from ticket_search.config.imports import load_function, source_digest
from ticket_search.config.trajectory import TASKS, USER_FUNCTION, DatasetSpec, TrajectorySpec
from ticket_search.config.user_error import one_line
from ticket_search.errors import DataError, SpecError, TicketSearchError
from ticket_search.tasks.metric import Metric
from ticket_search.tasks.task import Fit, Task, TaskKind


def task_kind(name: str) -> TaskKind:
    """Return a task kind by name: one of `TASKS`, or ``package.module:function``.

    A user's function is called without arguments and must return a `TaskKind`.

    Raises:
        SpecError: the name is unknown, or a user's function fails or does not return a `TaskKind`.
    """
    if make := _KINDS.get(name):
        return make()
    if not USER_FUNCTION.fullmatch(name):
        raise SpecError(unknown("task", name, [*TASKS, "package.module:function"]))
    function = load_function(name)
    try:
        kind = function()
        if isinstance(kind, TaskKind):
            return _UserKind(name, kind)
    except (Exception, SystemExit) as error:
        if isinstance(error, TicketSearchError):
            raise
        raise SpecError(f"task {name!r}: the function raised {one_line(error)}") from error
    raise SpecError(f"task {name!r}: the function returned {kind!r:.80}, not a ticket_search.tasks.task.TaskKind")


class _UserKind(TaskKind):
    """A wrapper around a user's task kind that turns exceptions raised in the driver into one-line errors.

    Args:
        spelled: the task's name in the search space.
        kind: the user's task kind.

    Raises:
        SpecError: the task kind's metric is not a `Metric`.
    """

    def __init__(self, spelled: str, kind: TaskKind) -> None:
        self._spelled = spelled
        self._kind = kind
        self.name, self.metric = kind.name, kind.metric
        if not isinstance(self.metric, Metric):
            raise SpecError(
                f"task {spelled!r}: {type(kind).__name__}.metric is {self.metric!r:.80}, not a "
                "ticket_search.tasks.metric.Metric"
            )

    def read(self, dataset: DatasetSpec, data_dir: Path) -> Any:
        """Read the data with the user's task kind."""
        try:
            return self._kind.read(dataset, data_dir)
        except TicketSearchError:
            raise
        except (Exception, SystemExit) as error:
            raise DataError(self._failure("read", error)) from error

    def check(self, trajectory: TrajectorySpec, source: Any) -> Fit:
        """Check a trajectory with the user's task kind."""
        try:
            fit = self._kind.check(trajectory, source)
        except TicketSearchError:
            raise
        except (Exception, SystemExit) as error:
            raise SpecError(self._failure("check", error)) from error
        if not isinstance(fit, Fit):
            raise SpecError(
                f"task {self._spelled!r}: {type(self._kind).__name__}.check returned {fit!r:.80}, not a "
                "ticket_search.tasks.task.Fit"
            )
        return fit

    def on(self, dataset: DatasetSpec, source: Any, device: str) -> Task:
        """Return the user's task."""
        return self._kind.on(dataset, source, device)

    def _failure(self, method: str, error: BaseException) -> str:
        return f"task {self._spelled!r}: {type(self._kind).__name__}.{method} raised {one_line(error)}"


def task_digest(name: str) -> str:
    """Return a digest of the source of a user's task; "" for the tasks of this package.

    Raises:
        SpecError: the user's module cannot be imported.
    """
    return source_digest(name) if USER_FUNCTION.fullmatch(name) else ""


def load_task(spec: TrajectorySpec, data_dir: Path, device: str = "cpu") -> Task:
    """Read a trajectory's data from `data_dir`, and return the trajectory's task on a device.

    Raises:
        DataError: see `TaskKind.read`.
        SpecError: see `task_kind`.
    """
    kind = task_kind(spec.task)
    return kind.on(spec.dataset, kind.read(spec.dataset, data_dir), device)


def _classification() -> TaskKind:
    from ticket_search.tasks.classification import Classification

    return Classification()


#: Each task kind is imported only when it is needed, because `classification` imports pyarrow.
_KINDS: dict[str, Callable[[], TaskKind]] = {"classification": _classification}
