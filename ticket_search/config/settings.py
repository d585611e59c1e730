"""Settings for choosing points, for judging and stopping trajectories, and for the resources of each trajectory."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ticket_search.config.base import Spec
from ticket_search.config.fields import NonNegativeInt, PositiveInt, Seed


class EarlyStoppingSpec(Spec):
    """When to stop a trajectory. Trajectories are compared at equal compression, not at equal level number.

    Attributes:
        collapse: a ticket has collapsed if its validation metric is worse than its dense network's by more than this.
        collapse_levels: the number of consecutive collapsed levels after which a trajectory is stopped.
        margin: a ticket clearly does not match if it is worse than the dense network by more than the tolerance plus
            this margin.
        patience: a trajectory may be stopped after this many consecutive levels that clearly do not match.
        worst_fraction: after `patience` such levels, a trajectory is stopped if its gap to the dense network is in
            this worst fraction of the gaps of all trajectories at the same compression.
        min_trajectories: the number of trajectories that must have reached a compression before they are compared
            at that compression.
    """

    collapse: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    collapse_levels: PositiveInt = 2
    margin: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.005
    patience: PositiveInt = 2
    worst_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    min_trajectories: Annotated[int, Field(ge=2, le=2**31 - 1)] = 4


class SearchSettings(Spec):
    """The ``search`` section: how points are chosen and trajectories are judged.

    Attributes:
        trials: the number of trajectories to run; null, which only ``grid`` allows, runs every point with every seed.
        sampler: ``tpe``, ``random``, ``grid``, or ``nsga2`` (whose two objectives are the validation metric and the
            compression).
        objective: the quantity to maximize. ``sparsest_matching`` is log2 of the highest compression at which a ticket
            still matches.
        tolerance: a ticket matches if its validation metric is worse than its dense network's by at most this.
        max_concurrent: the maximum number of trajectories that run at once; null means as many as fit.
        max_failures: the number of times to restart a trajectory whose worker died.
        checkpoint_seconds: the number of seconds between two checkpoints of a level in training, from which an
            interrupted run resumes; null writes no checkpoints.
        seed: the seed of the sampler.
        early_stopping: when to stop hopeless trajectories; null never stops a trajectory.
    """

    trials: PositiveInt | None = None
    sampler: Literal["tpe", "random", "grid", "nsga2"] = "tpe"
    objective: Literal["sparsest_matching"] = "sparsest_matching"
    tolerance: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    max_concurrent: PositiveInt | None = None
    max_failures: NonNegativeInt = 2
    checkpoint_seconds: Annotated[float, Field(gt=0.0)] | None = 60.0
    seed: Seed = 0
    early_stopping: EarlyStoppingSpec | None = EarlyStoppingSpec()

    @model_validator(mode="after")
    def _grid_alone_is_finite(self) -> "SearchSettings":
        if self.trials is None and self.sampler != "grid":
            raise ValueError(f"trials may be null only for the grid sampler; {self.sampler!r} needs a number of trials")
        return self


_LEAST_SHARE = 0.0001


class ResourcesSpec(Spec):
    """The resources of each worker. If `gpus` is less than 1, several workers share one GPU.

    Attributes:
        cpus: the number of CPUs.
        gpus: the number of GPUs, or a share 1/n of one.
        lanes: the number of trajectories that a worker trains together. Only some executors, such as ``stacked``,
            train more than one. null means the executor's own number, which is 1 for most executors.
    """

    cpus: Annotated[float, Field(gt=0.0)] = 1.0
    gpus: Annotated[float, Field(ge=0.0)] = 0.0
    lanes: PositiveInt | None = None

    @property
    def threads(self) -> int:
        """The number of threads that torch uses in a worker."""
        return max(1, int(self.cpus))

    @model_validator(mode="after")
    def _shares_that_pack(self) -> "ResourcesSpec":
        share = self.gpus
        if 0 < share < _LEAST_SHARE:
            raise ValueError(f"gpus {share} is less than Ray supports; give at least {_LEAST_SHARE}")
        if share > 1 and share != round(share):
            raise ValueError(f"gpus {share} is neither a share 1/n nor a whole number; give {round(share)}")
        # Ray counts GPUs in ten-thousandths, so n rounded shares may add up to more than one GPU (3 x 0.3334).
        n = round(1 / share) if 0 < share < 1 else 1
        if 0 < share < 1 and (n * round(share * 10_000) > 10_000 or abs(n * share - 1) > 1e-2):
            raise ValueError(f"gpus {share} is not 1/n, so shares would not fill a GPU; give {10_000 // n / 10_000:g}")
        return self
