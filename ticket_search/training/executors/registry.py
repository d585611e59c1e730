"""Choose a level's executor, identify it in level keys, and create it."""

from collections.abc import Callable

from ticket_search.config.base import unknown
from ticket_search.config.identity import PLAIN_EXECUTOR, ExecutorKey
from ticket_search.config.imports import load_function, source_digest
from ticket_search.config.trajectory import EXECUTORS, USER_FUNCTION, TrainingSpec
from ticket_search.config.user_error import one_line
from ticket_search.errors import SpecError, quoted
from ticket_search.training.executors.executor import Executor
from ticket_search.training.executors.plain import PlainExecutor
from ticket_search.training.executors.sparse import SparseExecutor
from ticket_search.training.executors.stacked import StackedExecutor

_EXECUTORS: dict[str, Callable[[], Executor]] = {
    "plain": PlainExecutor,
    "sparse": SparseExecutor,
    "stacked": StackedExecutor,
}
#: Raise an executor's version when equal inputs no longer give equal bits, e.g. when `layers.DENSE_ABOVE` changes.
_KEYS: dict[str, ExecutorKey] = {
    "plain": PLAIN_EXECUTOR,
    "sparse": {"name": "sparse", "version": 1},
    "stacked": {"name": "stacked", "version": 1},
}


def chosen_executor(training: TrainingSpec) -> str:
    """Return the name of the executor that trains a level.

    A search replaces ``auto`` before it starts; see `launch.executor`. In the run directories of earlier versions,
    ``auto`` means ``plain``.
    """
    return "plain" if training.executor == "auto" else training.executor


def executor_key(name: str) -> ExecutorKey:
    """Return an executor's identity in level keys. For a user's executor, this includes a digest of the source code.

    Raises:
        SpecError: the user's module cannot be imported.
    """
    if key := _KEYS.get(name):
        return key
    return {"name": name, "source": source_digest(name)}


def executor_for(name: str) -> Executor:
    """Create an executor by name: one of `EXECUTORS`, or ``package.module:function``.

    A user's function is called without arguments and must return an `Executor`.

    Raises:
        SpecError: the name is unknown, or a user's function fails or does not return an executor.
    """
    if make := _EXECUTORS.get(name):
        return make()
    if not USER_FUNCTION.fullmatch(name):
        raise SpecError(unknown("executor", name, [*EXECUTORS, "package.module:function"]))
    function = load_function(name)
    try:
        executor = function()
    except (Exception, SystemExit) as error:
        raise SpecError(f"executor {name!r}: the function raised {one_line(error)}") from error
    if not isinstance(executor, Executor):
        raise SpecError(
            f"executor {name!r}: the function returned {quoted(executor)}, "
            "not a ticket_search.training.executors.executor.Executor"
        )
    if not isinstance(executor.lanes, int) or executor.lanes < 1:
        raise SpecError(
            f"executor {name!r}: its attribute 'lanes' is {executor.lanes!r}; give an integer of at least 1"
        )
    return executor
