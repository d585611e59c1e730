"""How a search chooses and judges, and what each of its trajectories gets."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ticket_search.config.base import Spec
from ticket_search.config.fields import NonNegativeInt, PositiveInt, Seed


class EarlyStoppingSpec(Spec):
    """When a trajectory is dropped. Accuracies are compared at equal compression, never at equal level.

    Attributes:
        collapse: this far below its own dense network's validation accuracy, a ticket has collapsed.
        collapse_levels: so many collapsed levels in a row end a trajectory.
        margin: a ticket clearly does not match when it is more than this, and the tolerance, below the dense network.
        patience: so many levels in a row that clearly do not match, and ...
        worst_fraction: ... an accuracy, relative to the dense network's, among this fraction of the lowest at
            the same compression, end a trajectory.
        min_trajectories: no such comparison with fewer trajectories that have reached the compression.
    """

    collapse: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    collapse_levels: PositiveInt = 2
    margin: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.005
    patience: PositiveInt = 2
    worst_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    min_trajectories: Annotated[int, Field(ge=2)] = 4


class SearchSettings(Spec):
    """The ``search`` section: how points are chosen and judged.

    Attributes:
        trials: how many trajectories; null, for ``grid``, takes every point.
        sampler: ``tpe``, ``random``, ``grid``, or ``nsga2`` over (validation accuracy, compression).
        objective: ``sparsest_matching``: log2 of the best compression at which the ticket still matches.
        tolerance: a ticket matches when its validation accuracy is at most this far below its dense network's.
        max_concurrent: trajectories side by side; null means as many as fit.
        max_failures: how often a trajectory whose worker died is started over.
        checkpoint_seconds: between two checkpoints within a level, from which an interrupted training goes on; null
            makes none.
        seed: of the sampler.
        early_stopping: null turns it off.
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
            raise ValueError(f"trials null is for the grid sampler; {self.sampler!r} needs a number of trials")
        return self


class ResourcesSpec(Spec):
    """What each trajectory gets. A GPU share below 1 means several trajectories on one GPU."""

    cpus: Annotated[float, Field(gt=0.0)] = 1.0
    gpus: Annotated[float, Field(ge=0.0)] = 0.0

    @property
    def threads(self) -> int:
        """Of torch, for a trajectory."""
        return max(1, int(self.cpus))

    @model_validator(mode="after")
    def _shares_that_pack(self) -> "ResourcesSpec":
        share = self.gpus
        if share > 1 and share != round(share):
            raise ValueError(f"gpus {share} is neither a share 1/n nor a whole number; give {round(share)}")
        # Ray counts in ten-thousandths: n shares must not come to more than one GPU.
        n = round(1 / share) if 0 < share < 1 else 1
        if 0 < share < 1 and (n * round(share * 10_000) > 10_000 or abs(n * share - 1) > 1e-2):
            raise ValueError(f"gpus {share} is not 1/n, so shares would not pack; give {10_000 // n / 10_000:g}")
        return self
