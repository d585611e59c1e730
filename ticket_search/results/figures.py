"""The figures of a level, declared once, with where their values come from.

The store's records, the rows, the schemas, TensorBoard and ``docs/tables.md`` follow from these lists. To add a
figure, raise `SCHEMA_VERSION`, add a `Figure`, and add its line to ``docs/tables.md``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ticket_search.config.trajectory import TrajectorySpec
from ticket_search.tasks.metric import Metric

#: Raise it when a column is added or changes its name, type or meaning. A reader of version n reads all earlier ones.
SCHEMA_VERSION = 3

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table.

    Attributes:
        name: as in the table.
        type: Arrow's name of its type.
        meaning: one line, also in ``docs/tables.md``.
        since: the schema version that added it.
        older: its value in rows and store records of earlier versions.
        older_as: the column to copy in such rows, instead of `older`.
        in_tensorboard: whether TensorBoard draws it.
    """

    name: str
    type: str
    meaning: str = ""
    since: int = 1
    older: Any = None
    older_as: str = ""
    in_tensorboard: bool = False


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A trained level and what it is compared with.

    Attributes:
        level: a `lottery.level.Level`.
        dense: the level of the dense network of the same trajectory.
        metric: of the task.
        spec: of the trajectory.
        tolerance: of the search, in the metric's unit.
    """

    level: Any
    dense: Any
    metric: Metric
    spec: TrajectorySpec
    tolerance: float

    def accuracy(self, value: float) -> float | None:
        """The value if the metric is accuracy, else None."""
        return value if self.metric.name == "accuracy" else None


@dataclass(frozen=True, kw_only=True)
class Figure(Column):
    """A column whose value comes from a finished level.

    Attributes:
        value: computes it from a finished level. By default it is what the training measured under this name if the
            store keeps the figure, else the level's attribute of this name.
        stored: its names in the store's records, the current one first; empty if the store does not keep it.
        of_controls: whether the table ``controls`` has it too.
    """

    value: Callable[[Finished], Any] | None = None
    stored: tuple[str, ...] = ()
    of_controls: bool = False

    def of(self, finished: Finished) -> Any:
        """The value for a finished level."""
        if self.value is not None:
            return self.value(finished)
        return finished.level.figures[self.name] if self.stored else getattr(finished.level, self.name)

    def read(self, record: Row) -> Any:
        """The value in a record of the store."""
        return next((record[name] for name in self.stored if name in record), self.older)


#: Columns of `levels` and `trajectories` that identify a configuration.
CONFIGURATION = (
    Column(
        name="pruning_rate",
        type="double",
        meaning="fraction of the surviving weights removed per level; not used where `target_densities` are",
    ),
    Column(name="strategy", type="string", meaning="`layerwise` or `global`"),
    Column(name="criterion", type="string", meaning="what is pruned first: `magnitude`, `random`, ..."),
    Column(
        name="rewind_iteration",
        type="int64",
        meaning="survivors return to their values after so many iterations of level 0",
    ),
)
CONFIGURATION_NAMES = tuple(column.name for column in CONFIGURATION)
SEED = Column(name="seed", type="int64", meaning="drives initialization, data order and augmentation")

FIGURES = (
    Figure(
        name="kept_weights",
        type="int64",
        meaning="weights that the mask keeps; the count that density is made from",
    ),
    Figure(name="prunable_weights", type="int64", meaning="weights that pruning may touch"),
    Figure(
        name="density",
        type="double",
        meaning="kept / prunable",
        value=lambda f: f.level.kept_weights / f.level.prunable_weights,
        in_tensorboard=True,
    ),
    Figure(
        name="compression",
        type="double",
        meaning="prunable / kept",
        value=lambda f: f.level.prunable_weights / f.level.kept_weights,
        in_tensorboard=True,
    ),
    Figure(
        name="val_loss",
        type="double",
        meaning="loss after the last iteration, on the validation split, which is held out of the training split",
        of_controls=True,
        in_tensorboard=True,
    ),
    Figure(
        name="val_accuracy",
        type="double",
        meaning="accuracy there; null where the task's metric is another",
        value=lambda f: f.accuracy(f.level.val_metric),
        of_controls=True,
        in_tensorboard=True,
    ),
    Figure(
        name="test_loss",
        type="double",
        meaning="loss after the last iteration, on the test split; the search never looks at it",
        stored=("test_loss",),
        of_controls=True,
    ),
    Figure(
        name="test_accuracy",
        type="double",
        meaning="accuracy there",
        value=lambda f: f.accuracy(f.level.test_metric),
        of_controls=True,
        in_tensorboard=True,
    ),
    Figure(
        name="dense_val_accuracy",
        type="double",
        meaning="of the dense network of the same trajectory: level 0, or where early-bird has ended that, the network "
        "trained to its end",
        value=lambda f: f.accuracy(f.dense.val_metric),
    ),
    Figure(
        name="dense_test_accuracy",
        type="double",
        meaning="of the same network",
        value=lambda f: f.accuracy(f.dense.test_metric),
    ),
    Figure(
        name="matching",
        type="bool",
        meaning="whether `val_metric` is at most the tolerance worse than `dense_val_metric`",
        value=lambda f: f.metric.matches(f.level.val_metric, f.dense.val_metric, f.tolerance),
    ),
    Figure(
        name="early_stop_iteration",
        type="int64",
        meaning="iteration of the lowest validation loss",
        value=lambda f: None if f.level.diverged else f.level.early_stop_iteration,
        stored=("early_stop_iteration",),
        of_controls=True,
    ),
    Figure(
        name="early_stop_test_accuracy",
        type="double",
        meaning="test accuracy at that iteration",
        value=lambda f: f.accuracy(f.level.early_stop_test_metric),
        of_controls=True,
    ),
    Figure(
        name="iterations",
        type="int64",
        meaning="optimizer updates made for this level",
        stored=("iterations",),
        of_controls=True,
    ),
    Figure(
        name="train_seconds",
        type="double",
        meaning="spent on them, where it was trained",
        stored=("train_seconds",),
        of_controls=True,
    ),
    Figure(
        name="reused",
        type="bool",
        meaning="was trained by another trajectory or another search",
        of_controls=True,
    ),
    Figure(
        name="task",
        type="string",
        meaning="what the network was trained to do: `classification`, ...",
        since=2,
        older="classification",
        value=lambda f: f.spec.task,
    ),
    Figure(
        name="metric",
        type="string",
        meaning="what tickets of the task are judged by: `accuracy`, ...",
        since=2,
        older="accuracy",
        value=lambda f: f.metric.name,
    ),
    Figure(
        name="higher_is_better",
        type="bool",
        meaning="the metric's direction",
        since=2,
        older=True,
        value=lambda f: f.metric.higher_is_better,
    ),
    Figure(
        name="val_metric",
        type="double",
        meaning="the metric after the last iteration, on the validation split",
        since=2,
        older_as="val_accuracy",
        of_controls=True,
        in_tensorboard=True,
    ),
    Figure(
        name="test_metric",
        type="double",
        meaning="the metric there, on the test split; the search never looks at it",
        since=2,
        older_as="test_accuracy",
        stored=("test_metric", "test_accuracy"),
        of_controls=True,
        in_tensorboard=True,
    ),
    Figure(
        name="dense_val_metric",
        type="double",
        meaning="of the dense network, as `dense_val_accuracy`",
        since=2,
        older_as="dense_val_accuracy",
        value=lambda f: f.dense.val_metric,
    ),
    Figure(
        name="dense_test_metric",
        type="double",
        meaning="of the dense network, as `dense_test_accuracy`",
        since=2,
        older_as="dense_test_accuracy",
        value=lambda f: f.dense.test_metric,
    ),
    Figure(
        name="early_stop_test_metric",
        type="double",
        meaning="the test metric at `early_stop_iteration`",
        since=2,
        older_as="early_stop_test_accuracy",
        stored=("early_stop_test_metric", "early_stop_test_accuracy"),
        of_controls=True,
    ),
    Figure(
        name="torch_version",
        type="string",
        meaning="PyTorch's version when the level was trained; this and the next three are null in older records",
        since=3,
        stored=("torch_version",),
        of_controls=True,
    ),
    Figure(
        name="device",
        type="string",
        meaning="what trained it: `cpu`, or the name of the GPU",
        since=3,
        stored=("device",),
        of_controls=True,
    ),
    Figure(
        name="threads",
        type="int64",
        meaning="CPU threads that PyTorch used",
        since=3,
        stored=("threads",),
        of_controls=True,
    ),
    Figure(
        name="ticket_search_version",
        type="string",
        meaning="version of this package that trained it",
        since=3,
        stored=("ticket_search_version",),
        of_controls=True,
    ),
    Figure(
        name="model.name",
        type="string",
        meaning="the network; null in rows of older versions, unless it was searched",
        since=3,
        value=lambda f: f.spec.model.name,
    ),
    Figure(
        name="dataset.name",
        type="string",
        meaning="the data set; null likewise",
        since=3,
        value=lambda f: f.spec.dataset.name,
    ),
)
#: Fields of the space that `levels` always has a column for, so that tables of several searches can be concatenated.
ALWAYS_NAMED = ("model.name", "dataset.name")


def configuration(spec: TrajectorySpec) -> dict[str, Any]:
    """The columns that `levels` and `trajectories` share: what was run."""
    return {name: getattr(spec.pruning, name) for name in CONFIGURATION_NAMES} | {SEED.name: spec.seed}


@dataclass(frozen=True, kw_only=True)
class CurveFigure(Column):
    """A column of `curves`, computed from one evaluation (a `training` ``Point``) and the task's metric."""

    value: Callable[[Any, Metric], Any]


CURVE_FIGURES = (
    CurveFigure(
        name="iteration", type="int64", meaning="after so many iterations", value=lambda point, metric: point.iteration
    ),
    CurveFigure(
        name="train_loss",
        type="double",
        meaning="mean over the batches since the evaluation before",
        value=lambda point, metric: point.train_loss,
        in_tensorboard=True,
    ),
    CurveFigure(
        name="val_loss",
        type="double",
        meaning="loss on the validation split",
        value=lambda point, metric: point.val_loss,
        in_tensorboard=True,
    ),
    CurveFigure(
        name="val_accuracy",
        type="double",
        meaning="accuracy there; null where the task's metric is another",
        value=lambda point, metric: point.val_metric if metric.name == "accuracy" else None,
        in_tensorboard=True,
    ),
    CurveFigure(
        name="val_metric",
        type="double",
        meaning="the metric there",
        since=2,
        older_as="val_accuracy",
        value=lambda point, metric: point.val_metric,
        in_tensorboard=True,
    ),
)


def stored_figures() -> list[Figure]:
    """The figures that the store's records keep."""
    return [figure for figure in FIGURES if figure.stored]
