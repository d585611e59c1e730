"""Declares all figures of a level, and how their values are computed.

The lists in this module determine the store's records, the rows and schemas of the tables, and the TensorBoard files.
To add a figure, increase `SCHEMA_VERSION`, add a `Figure`, and describe it in ``docs/tables.md``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ticket_search.config.trajectory import TrajectorySpec
from ticket_search.tasks.metric import Metric

#: Increase this number when a column is added, or when the name, type or meaning of a column changes. A reader of
#: version n can also read tables of all earlier versions.
SCHEMA_VERSION = 3

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table.

    Attributes:
        name: the name of the column.
        type: the name of the column's Arrow type.
        meaning: a one-line description, which ``docs/tables.md`` repeats.
        since: the schema version that added the column.
        older: the column's value in rows and store records that were written before the column existed.
        older_as: the name of another column, whose value such rows take instead of `older`; empty if there is none.
        in_tensorboard: whether TensorBoard plots the column.
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
    """A finished level, with everything else that is needed to compute its figures.

    Attributes:
        level: the `lottery.level.Level`.
        dense: the fully trained dense network of the same trajectory (`Level.dense` of level 0).
        metric: the metric of the task.
        spec: the specification of the trajectory.
        tolerance: the tolerance of the search, in the metric's unit.
    """

    level: Any
    dense: Any
    metric: Metric
    spec: TrajectorySpec
    tolerance: float

    def accuracy(self, value: float) -> float | None:
        """Return the value if the metric is accuracy, else None."""
        return value if self.metric.name == "accuracy" else None


@dataclass(frozen=True, kw_only=True)
class Figure(Column):
    """A column whose value comes from a finished level.

    Attributes:
        value: a function that computes the value from a finished level. If None, the value of a stored figure
            is `level.figures[name]`, and the value of any other figure is the level's attribute `name`.
        stored: the figure's names in the store's records: the current name, then the names that earlier versions used;
            empty if the records do not contain the figure.
        of_controls: whether the table ``controls`` also has the column.
    """

    value: Callable[[Finished], Any] | None = None
    stored: tuple[str, ...] = ()
    of_controls: bool = False

    def of(self, finished: Finished) -> Any:
        """Return the value for a finished level."""
        if self.value is not None:
            return self.value(finished)
        return finished.level.figures[self.name] if self.stored else getattr(finished.level, self.name)

    def read(self, record: Row) -> Any:
        """Read the value from a record of the store."""
        return next((record[name] for name in self.stored if name in record), self.older)


#: Columns of `levels` and `trajectories` that identify a configuration.
CONFIGURATION = (
    Column(
        name="pruning_rate",
        type="double",
        meaning="fraction of the surviving weights that each level removes; not used if there are `target_densities`",
    ),
    Column(name="strategy", type="string", meaning="`layerwise` or `global`"),
    Column(name="criterion", type="string", meaning="score that decides which weights are pruned: `magnitude`, ..."),
    Column(
        name="rewind_iteration",
        type="int64",
        meaning="k: surviving weights are rewound to their values after k iterations of level 0",
    ),
)
CONFIGURATION_NAMES = tuple(column.name for column in CONFIGURATION)
SEED = Column(name="seed", type="int64", meaning="seed of the initialization, the data order and the augmentation")

FIGURES = (
    Figure(
        name="kept_weights",
        type="int64",
        meaning="number of weights that the mask keeps",
    ),
    Figure(name="prunable_weights", type="int64", meaning="number of weights that can be pruned"),
    Figure(
        name="density",
        type="double",
        meaning="kept_weights / prunable_weights",
        value=lambda f: f.level.kept_weights / f.level.prunable_weights,
        in_tensorboard=True,
    ),
    Figure(
        name="compression",
        type="double",
        meaning="prunable_weights / kept_weights",
        value=lambda f: f.level.prunable_weights / f.level.kept_weights,
        in_tensorboard=True,
    ),
    Figure(
        name="val_loss",
        type="double",
        meaning="loss on the validation split (held out of the training split) after the last iteration",
        of_controls=True,
        in_tensorboard=True,
    ),
    Figure(
        name="val_accuracy",
        type="double",
        meaning="accuracy on the validation split after the last iteration; null if the metric is not accuracy",
        value=lambda f: f.accuracy(f.level.val_metric),
        of_controls=True,
        in_tensorboard=True,
    ),
    Figure(
        name="test_loss",
        type="double",
        meaning="loss on the test split after the last iteration; the search never uses it",
        stored=("test_loss",),
        of_controls=True,
    ),
    Figure(
        name="test_accuracy",
        type="double",
        meaning="accuracy on the test split after the last iteration; null if the metric is not accuracy",
        value=lambda f: f.accuracy(f.level.test_metric),
        of_controls=True,
        in_tensorboard=True,
    ),
    Figure(
        name="dense_val_accuracy",
        type="double",
        meaning="`val_accuracy` of the dense network of the same trajectory: level 0 or, if early-bird ended it, the "
        "dense network trained for all iterations",
        value=lambda f: f.accuracy(f.dense.val_metric),
    ),
    Figure(
        name="dense_test_accuracy",
        type="double",
        meaning="`test_accuracy` of the same dense network",
        value=lambda f: f.accuracy(f.dense.test_metric),
    ),
    Figure(
        name="matching",
        type="bool",
        meaning="whether `val_metric` is at least as good as `dense_val_metric`, within the tolerance",
        value=lambda f: f.metric.matches(f.level.val_metric, f.dense.val_metric, f.tolerance),
    ),
    Figure(
        name="early_stop_iteration",
        type="int64",
        meaning="iteration of the lowest validation loss or, if the task has no loss, of the best `val_metric`",
        value=lambda f: None if f.level.diverged else f.level.early_stop_iteration,
        stored=("early_stop_iteration",),
        of_controls=True,
    ),
    Figure(
        name="early_stop_test_accuracy",
        type="double",
        meaning="accuracy on the test split at `early_stop_iteration`",
        value=lambda f: f.accuracy(f.level.early_stop_test_metric),
        of_controls=True,
    ),
    Figure(
        name="iterations",
        type="int64",
        meaning="number of optimizer updates in this level",
        stored=("iterations",),
        of_controls=True,
    ),
    Figure(
        name="train_seconds",
        type="double",
        meaning="training time in seconds, on the machine that trained the level",
        stored=("train_seconds",),
        of_controls=True,
    ),
    Figure(
        name="reused",
        type="bool",
        meaning="whether the level was trained by another trajectory or search",
        of_controls=True,
    ),
    Figure(
        name="task",
        type="string",
        meaning="task of the network: `classification`, ...",
        since=2,
        older="classification",
        value=lambda f: f.spec.task,
    ),
    Figure(
        name="metric",
        type="string",
        meaning="metric of the task: `accuracy`, ...",
        since=2,
        older="accuracy",
        value=lambda f: f.metric.name,
    ),
    Figure(
        name="higher_is_better",
        type="bool",
        meaning="whether a higher value of the metric is better",
        since=2,
        older=True,
        value=lambda f: f.metric.higher_is_better,
    ),
    Figure(
        name="val_metric",
        type="double",
        meaning="metric on the validation split after the last iteration",
        since=2,
        older_as="val_accuracy",
        of_controls=True,
        in_tensorboard=True,
    ),
    Figure(
        name="test_metric",
        type="double",
        meaning="metric on the test split after the last iteration; the search never uses it",
        since=2,
        older_as="test_accuracy",
        stored=("test_metric", "test_accuracy"),
        of_controls=True,
        in_tensorboard=True,
    ),
    Figure(
        name="dense_val_metric",
        type="double",
        meaning="`val_metric` of the dense network; see `dense_val_accuracy`",
        since=2,
        older_as="dense_val_accuracy",
        value=lambda f: f.dense.val_metric,
    ),
    Figure(
        name="dense_test_metric",
        type="double",
        meaning="`test_metric` of the dense network; see `dense_val_accuracy`",
        since=2,
        older_as="dense_test_accuracy",
        value=lambda f: f.dense.test_metric,
    ),
    Figure(
        name="early_stop_test_metric",
        type="double",
        meaning="metric on the test split at `early_stop_iteration`",
        since=2,
        older_as="early_stop_test_accuracy",
        stored=("early_stop_test_metric", "early_stop_test_accuracy"),
        of_controls=True,
    ),
    Figure(
        name="torch_version",
        type="string",
        meaning="version of PyTorch that trained the level; this column and the next three are null for levels of "
        "older versions",
        since=3,
        stored=("torch_version",),
        of_controls=True,
    ),
    Figure(
        name="device",
        type="string",
        meaning="device that trained the level: `cpu`, or the name of the GPU",
        since=3,
        stored=("device",),
        of_controls=True,
    ),
    Figure(
        name="threads",
        type="int64",
        meaning="number of CPU threads that PyTorch used",
        since=3,
        stored=("threads",),
        of_controls=True,
    ),
    Figure(
        name="ticket_search_version",
        type="string",
        meaning="version of this package that trained the level",
        since=3,
        stored=("ticket_search_version",),
        of_controls=True,
    ),
    Figure(
        name="model.name",
        type="string",
        meaning="name of the network; null in rows of older versions, unless it was a searched field",
        since=3,
        value=lambda f: f.spec.model.name,
    ),
    Figure(
        name="dataset.name",
        type="string",
        meaning="name of the data set; null in rows of older versions, unless it was a searched field",
        since=3,
        value=lambda f: f.spec.dataset.name,
    ),
)
#: Searched fields for which `levels` always has a column, so that tables of several searches can be concatenated.
ALWAYS_NAMED = ("model.name", "dataset.name")


def configuration(spec: TrajectorySpec) -> dict[str, Any]:
    """Return the values of the columns that identify a trajectory's configuration and seed."""
    return {name: getattr(spec.pruning, name) for name in CONFIGURATION_NAMES} | {SEED.name: spec.seed}


@dataclass(frozen=True, kw_only=True)
class CurveFigure(Column):
    """A column of `curves`.

    Attributes:
        value: a function that computes the value from an evaluation (a ``Point`` of `training`) and the task's metric.
    """

    value: Callable[[Any, Metric], Any]


CURVE_FIGURES = (
    CurveFigure(
        name="iteration",
        type="int64",
        meaning="iteration of the evaluation",
        value=lambda point, metric: point.iteration,
    ),
    CurveFigure(
        name="train_loss",
        type="double",
        meaning="mean loss over the training batches since the previous evaluation",
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
        meaning="accuracy on the validation split; null if the metric is not accuracy",
        value=lambda point, metric: point.val_metric if metric.name == "accuracy" else None,
        in_tensorboard=True,
    ),
    CurveFigure(
        name="val_metric",
        type="double",
        meaning="metric on the validation split",
        since=2,
        older_as="val_accuracy",
        value=lambda point, metric: point.val_metric,
        in_tensorboard=True,
    ),
)


def stored_figures() -> list[Figure]:
    """Return the figures that the store's records contain."""
    return [figure for figure in FIGURES if figure.stored]
