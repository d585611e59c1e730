"""The specification of a search: its base configuration, search space, seeds and settings."""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationInfo, field_validator, model_validator

from ticket_search.config.base import FromList, Spec, validate
from ticket_search.config.fields import Seed
from ticket_search.config.identity import canonical, digest
from ticket_search.config.older import older_path, with_newer_sections, with_older_sections
from ticket_search.config.pruning import ControlsSpec, PruningSpec
from ticket_search.config.settings import ResourcesSpec, SearchSettings
from ticket_search.config.space import (
    MOST_STEPS,
    SECTIONS,
    Domain,
    Range,
    assign,
    domain_values,
    dotted,
    ends,
    holds,
    read_domain,
)
from ticket_search.config.trajectory import DatasetSpec, ModelSpec, TrainingSpec, TrajectorySpec, check_task
from ticket_search.errors import SpecError, quoted

#: The fields of the section ``search`` that may change when a search is resumed.
CHANGEABLE_SETTINGS = ("trials", "early_stopping", "max_concurrent", "max_failures", "checkpoint_seconds")
#: The keys that say where a search runs and stores its data. They may also change when a search is resumed.
PLACES = ("resources", "data_dir", "store")
#: If a space has at most this many points, all of them are checked. The limit is higher for a grid (`_MANY`), because a
#: grid runs every point. Each check takes about 0.1 ms.
_FEW = 500
_MANY = 10_000
#: If a list has more values than this, only some of them are checked in combination with the values of other fields,
#: because two lists of 1,000 values have a million pairs; see `_ends_of_many`.
_MOST_PAIRED = 30
#: The validation context of a search whose points were checked when its file was written.
CHECKED_BEFORE = "checked before"


class SearchSpec(Spec):
    """A validated search space file, with every default filled in.

    Attributes:
        name: the name of the search, and of its default run directory.
        task: the task that networks are trained for; see `TrajectorySpec`.
        dataset: the images of the base configuration.
        model: the network of the base configuration.
        training: the training settings of the base configuration.
        pruning: the pruning settings of the base configuration.
        controls: the controls to train for each ticket.
        space: the values of each searched field, by name. A name is a dotted path such as ``training.optimizer.lr``;
            fields of ``pruning`` also have a short form, such as ``pruning_rate``.
        points: the points of a grid, each with a value for every field of the space; null means every combination.
        seeds: the seeds of trajectories, spread evenly over the trials; the sampler does not choose them.
        search: how points are chosen and trajectories are judged.
        resources: the resources of each trajectory.
        data_dir: the folder of the data sets; a relative path is resolved against the working directory.
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
        return {name: read_domain(str(name), domain) for name, domain in space.items() if domain is not None}

    @field_validator("name")
    @classmethod
    def _fit_for_a_directory(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", name):
            raise ValueError(
                f"{quoted(name)} cannot name a directory; give up to 100 letters, digits, '_', '-' and '.'"
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
            raise ValueError(f"{quoted(list(seeds))} contains duplicates; give each seed only once")
        return seeds

    @model_validator(mode="after")
    def _points_of_the_space(self) -> "SearchSpec":
        for point in self.points or ():
            if self.search.sampler != "grid":
                raise ValueError(
                    f"points are only for the grid sampler, not for {self.search.sampler!r}; set points to null"
                )
            if set(point) != set(self.space):
                raise ValueError(f"points: {quoted(point)} must have the fields of the space: {list(self.space)}")
            for name, value in point.items():
                if not holds(self.space[name], value):
                    raise ValueError(f"points: {name} {quoted(value)} is not in space.{name}; add it there")
        return self

    @model_validator(mode="after")
    def _every_extreme_is_a_trajectory(self, info: ValidationInfo) -> "SearchSpec":
        if info.context == CHECKED_BEFORE:
            return self
        self._check_fields()
        for values in self.points_to_check():
            try:
                self.trajectory_at(values, self.seeds[0])
            except SpecError as error:
                raise ValueError(str(error)) from None
        self._check_spellings()
        return self

    def _check_fields(self) -> None:
        """Check that no field is given twice, and that a grid is neither infinite nor too large."""
        spelled: dict[str, str] = {}
        for name in self.space:
            if (other := spelled.setdefault(dotted(name), name)) != name:
                raise ValueError(f"space.{other} and space.{name} are the same field; give it once")
        if self.search.sampler != "grid":
            return
        for name, domain in self.space.items():
            if isinstance(domain, Range) and domain.step is None:
                raise ValueError(f"space.{name}: a grid needs a list, or a range with a step")
        if (self.size or 0) > MOST_STEPS:
            raise ValueError(f"space: a grid of {self.size} points is too large; the maximum is {MOST_STEPS}")

    def _check_spellings(self) -> None:
        """Check that no list spells the same value in two ways, such as the target densities 0.5 and [0.5]."""
        start = next(iter(self.points_to_check()))
        for name, domain in self.space.items():
            if isinstance(domain, Range):
                continue
            seen: list[Any] = []
            for value in domain:
                part: Any = self.trajectory_at({**start, name: value}, self.seeds[0])
                for attribute in dotted(name).split("."):
                    part = getattr(part, attribute)
                if part in seen:
                    same = domain[seen.index(part)]
                    raise ValueError(
                        f"space.{name}: {quoted(same)} and {quoted(value)} are the same value; give only one"
                    )
                seen.append(part)

    def points_to_check(self) -> Iterable[dict[str, Any]]:
        """Return the points to check before a search starts.

        In a small space, these are all points; in a large space, they are the `corners`.
        """
        every = self.size is not None and self.size <= (_MANY if self.search.sampler == "grid" else _FEW)
        return self.grid() if every else self.corners()

    def corners(self) -> Iterator[dict[str, Any]]:
        """Generate points that together cover every pair of values of any two fields.

        Pairs matter because a value may be valid only in combination with some values of another field. For example,
        a rewind iteration must be less than the number of training iterations, and only SGD has momentum. A range is
        represented by its two ends. The pairs include only some of the values of a long list; see `_ends_of_many`.
        """
        extremes = {name: ends(domain) for name, domain in self.space.items()}
        start = {name: values[0] for name, values in extremes.items()}
        yield start
        for name, values in extremes.items():
            yield from ({**start, name: value} for value in values[1:])
        paired = {name: _ends_of_many(values[1:]) for name, values in extremes.items()}
        for one, other in itertools.combinations(paired, 2):
            yield from ({**start, one: a, other: b} for a in paired[one] for b in paired[other])

    def trajectory_at(self, values: Mapping[str, Any], seed: int) -> TrajectorySpec:
        """Build the trajectory at one point of the space.

        Args:
            values: the value of every field in `space`, by name.
            seed: the seed of the trajectory.

        Raises:
            SpecError: the values do not make a valid trajectory.
        """
        raw: dict[str, Any] = {name: getattr(self, name).model_dump(mode="json") for name in SECTIONS}
        for name, value in values.items():
            assign(raw, dotted(name), value)
        raw |= {"task": self.task, "controls": self.controls.model_dump(mode="json"), "seed": seed}
        return validate(TrajectorySpec, raw)

    def grid(self) -> list[dict[str, Any]]:
        """Return `points` if given, or else every combination of values, with the last field varying fastest."""
        if self.points is not None:
            return list(self.points)
        names = list(self.space)
        return [
            dict(zip(names, values, strict=True))
            for values in itertools.product(*map(domain_values, self.space.values()))
        ]

    @property
    def size(self) -> int | None:
        """The number of points, not counting seeds; None if the space has a continuous or a logarithmic range."""
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
        """The number of trajectories to run: `search.trials`, but at most one for each (point, seed) pair."""
        points = None if self.size is None else self.size * len(self.seeds)
        if points is None or self.search.trials is None:
            return self.search.trials if points is None else points
        return min(points, self.search.trials)

    @property
    def rewind_iterations(self) -> list[int]:
        """The rewind iterations that the search uses; empty if it draws them from a range."""
        listed = [domain for name, domain in self.space.items() if dotted(name) == "pruning.rewind_iteration"]
        if not listed:
            return [self.pruning.rewind_iteration]
        return [] if isinstance(listed[0], Range) else list(listed[0])

    def identity(self) -> str:
        """Return a digest that identifies the search.

        The digest does not depend on settings that may change when a search is resumed.
        """
        plain = with_older_sections(canonical(self, without=set(PLACES)))
        plain["space"] = {older_path(dotted(name)): domain for name, domain in plain["space"].items()}
        if "points" in plain:
            plain["points"] = [{older_path(dotted(n)): v for n, v in point.items()} for point in plain["points"]]
        plain["dataset"].pop("download", None)
        for setting in CHANGEABLE_SETTINGS:
            plain["search"].pop(setting, None)
        return digest(plain)

    def to_yaml(self) -> str:
        """Return the search as YAML that `loading.load_search` reads back as an equal search.

        Earlier versions of this package, which read YAML 1.1, can read the file too: PyYAML quotes every string that
        YAML 1.1 would read as another type.
        """
        return yaml.dump(self.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """A YAML dumper that also quotes strings that only YAML 1.2 reads as numbers: ``1e5``, ``089``, ``0o17``."""


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    may_be_number = text[:1] in "-+.0123456789"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'" if may_be_number else None)


_Dumper.add_representer(str, _text)


def _ends_of_many(values: list[Any]) -> list[Any]:
    """Return the values or, if there are more than `_MOST_PAIRED`, only some of them.

    For numbers, these are the minimum and the maximum; for other values, the first few.
    """
    if len(values) <= _MOST_PAIRED:
        return values
    if all(isinstance(value, int | float) for value in values):
        return [min(values), max(values)]
    return values[:_MOST_PAIRED]
