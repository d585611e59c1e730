"""A search: the base configuration, what varies, and how the next point is chosen."""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from ticket_search.config.base import FromList, Spec, unknown, validate
from ticket_search.config.fields import NonNegativeInt, PositiveInt, Seed
from ticket_search.config.identity import canonical, digest
from ticket_search.config.older import OLDER_SECTIONS, older_path, with_newer_sections, with_older_sections
from ticket_search.config.pruning import ControlsSpec, PruningSpec
from ticket_search.config.trajectory import DatasetSpec, ModelSpec, TrainingSpec, TrajectorySpec, check_task
from ticket_search.errors import SpecError

SECTIONS: dict[str, type[Spec]] = {
    "dataset": DatasetSpec,
    "model": ModelSpec,
    "training": TrainingSpec,
    "pruning": PruningSpec,
}
Scalar = bool | int | float | str | None


#: What a search may be resumed with changed: fields of its ``search`` section, ...
CHANGEABLE_SETTINGS = ("trials", "early_stopping", "max_concurrent", "max_failures", "checkpoint_seconds")
#: ... and the sections that say where it runs.
PLACES = ("resources", "data_dir", "store")


class Range(Spec):
    """The numbers between two bounds, both included.

    Attributes:
        log: draw the logarithm uniformly.
        step: draw ``low, low + step, ...`` only.
    """

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        if self.low >= self.high:
            raise ValueError(f"low {self.low} must be less than high {self.high}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError(f"a log range needs low above 0 and no step, not low {self.low}, step {self.step}")
        if self.step is not None and self.step < _LEAST_STEP:
            raise ValueError(f"step {self.step} must be at least {_LEAST_STEP}")
        if self.step is not None and self.count > _MOST_STEPS:
            raise ValueError(f"step {self.step} makes {self.count} values; give at most {_MOST_STEPS}, or no step")
        return self

    @property
    def count(self) -> int:
        """How many values it has with its step; of integers, with step 1 where none is given."""
        return int((self.high - self.low) / (self.step or 1) + 1e-9) + 1

    def value(self, i: int) -> int | float:
        """The i-th of those values."""
        value = self.low + i * (self.step or 1)
        # The rounding undoes the noise of binary fractions: 0.1 + 2 * 0.1 is 0.3.
        return value if self.is_integer else round(float(value), 12)

    @property
    def is_integer(self) -> bool:
        """Whether it draws integers: its bounds (and step) are."""
        return all(isinstance(v, int) for v in (self.low, self.high, 1 if self.step is None else self.step))


_MOST_STEPS = 1_000_000
_LEAST_STEP = 1e-9
#: A space of so many points is checked point by point.
_FEW = 500
#: What a field may be: one of a list, or a number of a range.
Domain = tuple[Any, ...] | Range


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


class SearchSpec(Spec):
    """A search space file, resolved: every default written out, every name checked.

    Attributes:
        name: names the default run directory.
        task: what networks are trained to do; see `TrajectorySpec`.
        controls: what is trained beside the tickets.
        space: field name -> what it may be. A name is a dotted path such as ``training.optimizer.lr``; the fields
            of ``pruning`` may be written short, as ``pruning_rate``.
        points: those of a grid, each with a value for every field of the space; null means every combination.
        seeds: spread evenly over the trials; the sampler does not model them.
        data_dir: where data sets lie; a relative one is taken from the working directory.
        store: the level store, a path or ``s3://bucket/path``; null means ``store/`` in the run directory.
    """

    name: str
    task: str = "classification"
    dataset: DatasetSpec
    model: ModelSpec
    training: TrainingSpec
    pruning: PruningSpec = PruningSpec()
    controls: ControlsSpec = ControlsSpec()
    space: dict[str, Domain]
    points: Annotated[tuple[dict[str, Any], ...], FromList, Field(min_length=1)] | None = None
    seeds: Annotated[tuple[Seed, ...], FromList, Field(min_length=1)]
    search: SearchSettings
    resources: ResourcesSpec = ResourcesSpec()
    data_dir: str | None = None
    store: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _older_sections(cls, raw: Any) -> Any:
        return with_newer_sections(raw)

    @field_validator("space", mode="before")
    @classmethod
    def _domains(cls, space: object) -> object:
        if not isinstance(space, Mapping):
            return space
        return {name: _domain(str(name), domain) for name, domain in space.items() if domain is not None}

    @field_validator("name")
    @classmethod
    def _fit_for_a_directory(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", name):
            raise ValueError(
                f"{name[:120]!r} is no name for a directory; give up to 100 letters, digits, '_', '-' and '.'"
            )
        return name

    @field_validator("task")
    @classmethod
    def _known_task(cls, name: str) -> str:
        return check_task(name)

    @field_validator("seeds")
    @classmethod
    def _distinct_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"{list(seeds)} names a seed twice; give each once")
        return seeds

    @model_validator(mode="after")
    def _points_of_the_space(self) -> "SearchSpec":
        for point in self.points or ():
            if self.search.sampler != "grid":
                raise ValueError(f"points are for the grid sampler, not for {self.search.sampler!r}; give null")
            if set(point) != set(self.space):
                raise ValueError(f"points: {point} has not the fields of the space, {list(self.space)}; give those")
            for name, value in point.items():
                if not _holds(self.space[name], value):
                    raise ValueError(f"points: {name} {value!r} is not in space.{name}; add it there")
        return self

    @model_validator(mode="after")
    def _every_extreme_is_a_trajectory(self) -> "SearchSpec":
        spelled: dict[str, str] = {}
        for name in self.space:
            if (other := spelled.setdefault(dotted(name), name)) != name:
                raise ValueError(f"space.{other} and space.{name} are the same field; give it once")
        if self.search.sampler == "grid":
            for name, domain in self.space.items():
                if isinstance(domain, Range) and domain.step is None:
                    raise ValueError(f"space.{name}: a grid needs a list, or a range with a step")
        if self.search.sampler == "grid" and (self.size or 0) > _MOST_STEPS:
            raise ValueError(f"space: a grid of {self.size} points is too many; give at most {_MOST_STEPS}")
        for values in self.trial_points():
            try:
                self.point(values, self.seeds[0])
            except SpecError as error:
                raise ValueError(str(error)) from None
        self._check_spellings()
        return self

    def _check_spellings(self) -> None:
        """Refuse two spellings of one value: 0.5 and [0.5] of target densities, say."""
        start = next(iter(self.trial_points()))
        for name, domain in self.space.items():
            if isinstance(domain, Range):
                continue
            seen: list[Any] = []
            for value in domain:
                found: Any = self.point({**start, name: value}, self.seeds[0])
                for part in dotted(name).split("."):
                    found = getattr(found, part)
                if found in seen:
                    same = domain[seen.index(found)]
                    raise ValueError(f"space.{name}: {same!r} and {value!r} are the same; give one")
                seen.append(found)

    def trial_points(self) -> Iterable[dict[str, Any]]:
        """Points to check a search at before it starts: all of a grid or of a small space, else the corners."""
        every = self.size is not None and (self.size <= _FEW or self.search.sampler == "grid")
        return self.grid() if every else self.corners()

    def corners(self) -> Iterator[dict[str, Any]]:
        """Assignments that between them try every two fields' values together: of a list each, of a range both ends.

        A rewind may fit one length of training and not another; momentum may fit one optimizer and not another.
        """
        ends = {name: _ends(domain) for name, domain in self.space.items()}
        start = {name: values[0] for name, values in ends.items()}
        yield start
        for name, values in ends.items():
            yield from ({**start, name: value} for value in values[1:])
        for one, other in itertools.combinations(ends, 2):
            yield from ({**start, one: a, other: b} for a in ends[one][1:] for b in ends[other][1:])

    def point(self, values: Mapping[str, Any], seed: int) -> TrajectorySpec:
        """The trajectory at one point of the space.

        Args:
            values: field name -> value, for every name in `space`.
            seed: the run's seed.

        Raises:
            SpecError: the values do not make a valid trajectory.
        """
        raw: dict[str, Any] = {name: getattr(self, name).model_dump(mode="json") for name in SECTIONS}
        for name, value in values.items():
            assign(raw, dotted(name), value)
        raw |= {"task": self.task, "controls": self.controls.model_dump(mode="json"), "seed": seed}
        return validate(TrajectorySpec, raw)

    def grid(self) -> list[dict[str, Any]]:
        """Every combination of the space, the last field varying fastest; or the points there are instead."""
        if self.points is not None:
            return list(self.points)
        names = list(self.space)
        return [
            dict(zip(names, values, strict=True))
            for values in itertools.product(*map(domain_values, self.space.values()))
        ]

    @property
    def size(self) -> int | None:
        """The number of combinations, without the seeds; None where a range is continuous."""
        if self.points is not None:
            return len(self.points)
        total = 1
        for domain in self.space.values():
            if isinstance(domain, Range) and domain.step is None and (domain.log or not domain.is_integer):
                return None
            total *= domain.count if isinstance(domain, Range) else len(domain)
        return total

    @property
    def planned_trials(self) -> int | None:
        """How many trajectories there will be: the trials asked for, or as many as the space and its seeds hold."""
        points = None if self.size is None else self.size * len(self.seeds)
        if points is None or self.search.trials is None:
            return self.search.trials if points is None else points
        return min(points, self.search.trials)

    @property
    def rewind_iterations(self) -> list[int]:
        """Iterations to rewind to that the space lists; empty for a range: there each trajectory asks for its own."""
        listed = [domain for name, domain in self.space.items() if dotted(name) == "pruning.rewind_iteration"]
        if not listed:
            return [self.pruning.rewind_iteration]
        return [] if isinstance(listed[0], Range) else list(listed[0])

    def identity(self) -> str:
        """A digest of what makes it this search and no other: not its length, its rules of stopping or its machines."""
        plain = with_older_sections(canonical(self, without=set(PLACES)))
        plain["space"] = {older_path(dotted(name)): domain for name, domain in plain["space"].items()}
        plain["dataset"].pop("download", None)
        for setting in CHANGEABLE_SETTINGS:
            plain["search"].pop(setting, None)
        return digest(plain)

    def to_yaml(self) -> str:
        """The resolved search; `loading.load_search` reads it back to an equal one."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def dotted(name: str) -> str:
    """The full path of a searched field: ``pruning_rate`` is ``pruning.pruning_rate``.

    A path of an older file, such as ``trajectory.pruning_rate``, means the same.
    """
    if name in PruningSpec.model_fields:
        return f"pruning.{name}"
    section, dot, rest = name.partition(".")
    return f"{OLDER_SECTIONS.get(section, section)}{dot}{rest}"


def assign(raw: dict[str, Any], path: str, value: object) -> None:
    """Set a dotted path in nested mappings, making those that are missing."""
    *parents, last = path.split(".")
    for part in parents:
        inner = raw.get(part)
        if not isinstance(inner, dict):
            inner = raw[part] = {}
        raw = inner
    raw[last] = value


def domain_values(domain: Domain) -> list[Any]:
    """Every value of a list, or of a range with a step (of integers: with step 1 where none is given)."""
    if not isinstance(domain, Range):
        return list(domain)
    return [domain.value(i) for i in range(domain.count)]


def _holds(domain: Domain, value: Any) -> bool:
    if isinstance(domain, Range):
        return isinstance(value, int | float) and domain.low <= value <= domain.high
    return value in domain


def _ends(domain: Domain) -> list[Any]:
    if not isinstance(domain, Range):
        return list(domain)
    high = domain.high if domain.step is None else domain.value(domain.count - 1)
    return [domain.low, high] if domain.is_integer else [float(domain.low), float(high)]


def _domain(name: str, domain: object) -> Domain:
    path = dotted(name)
    if path.split(".")[0] not in SECTIONS or "." not in path:
        searchable = [*PruningSpec.model_fields, *(f"{s}.*" for s in SECTIONS)]
        raise ValueError(unknown("field to search", name, searchable))
    if isinstance(domain, list | tuple):
        if not domain:
            raise ValueError(f"{name}: the list [] is empty; give at least one value")
        if any(domain.index(value) != i for i, value in enumerate(domain)):
            raise ValueError(f"{name}: {list(domain)} names a value twice; give each once")
        return tuple(domain)
    if isinstance(domain, Mapping):
        try:
            return validate(Range, domain, where=f"{name}: ")
        except SpecError as error:
            raise ValueError(str(error)) from None
    if isinstance(domain, Range):
        return domain
    raise ValueError(f"{name}: {domain!r} is neither a list of values nor a range {{low: ..., high: ...}}")
