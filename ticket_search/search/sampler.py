"""Chooses the next point of the space with Optuna. Optuna does not choose the seeds; they are used equally often."""

import json
import math
import random
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.study import StudyDirection
from optuna.trial import TrialState

from ticket_search.config.identity import derive_seed, digest, trajectory_id
from ticket_search.config.search import SearchSpec
from ticket_search.config.space import Domain, Range, domain_values
from ticket_search.errors import SpecError
from ticket_search.search.free_points import FreePoints
from ticket_search.search.suggestions import Suggestion

#: The number of points to request from Optuna. If all of them have already been run with every seed, a free point is
#: drawn at random instead.
_ATTEMPTS = 20
#: The score of a trajectory whose level 0 diverged.
_WORST_SCORE = -1.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a trajectory that has ended, for the sampler.

    Attributes:
        failed: whether the trajectory failed, in which case its outcome says nothing about its point.
        score: log2 of the highest compression at which the ticket matches; None if level 0 diverged.
        merit: the validation metric of that ticket, negated if lower is better; None if level 0 diverged.
    """

    failed: bool = False
    score: float | None = None
    merit: float | None = None


class Sampler:
    """Draws the suggestions of a search.

    Each suggestion is a pure function of the search, the suggestion's number, and all earlier suggestions and outcomes.

    Args:
        spec: the search.
    """

    def __init__(self, spec: SearchSpec) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._spec = spec
        self._distributions = {name: _distribution(domain) for name, domain in spec.space.items()}
        directions = [StudyDirection.MAXIMIZE] * (2 if spec.search.sampler == "nsga2" else 1)
        self.study = optuna.create_study(directions=directions, sampler=optuna.samplers.RandomSampler(seed=0))
        self._grid = _grid(spec) if spec.search.sampler == "grid" else None
        self._trials: dict[int, int] = {}
        # The merit of a trajectory whose level 0 diverged. Accuracy is at least 0; other metrics have no known bound.
        self._worst_merit = 0.0 if spec.task == "classification" else -math.inf
        self._used: set[str] = set()
        self._ids: dict[str, str] = {}
        self._seed_uses: Counter[int] = Counter()
        self._next = 0
        self._free_points = None if spec.size is None or self._grid else FreePoints(spec.space, len(spec.seeds))

    def ask(self) -> Suggestion | None:
        """Return the next suggestion, or None if every point has been run with every seed."""
        suggestion = self._ask_grid(self._grid) if self._grid else self._ask_optuna()
        if suggestion is not None:
            self._note(suggestion)
        return suggestion

    def tell(self, suggestion: Suggestion, outcome: Outcome) -> None:
        """Tell the sampler the outcome of a suggestion's trajectory; failed trajectories are ignored."""
        if outcome.failed:
            self.study.tell(self._trials[suggestion.number], state=TrialState.FAIL)
        else:
            self.study.tell(self._trials[suggestion.number], self._objectives(outcome))

    def replay(self, suggestion: Suggestion, outcome: Outcome | None) -> None:
        """Add a suggestion from an earlier process and its outcome, which is None if the trajectory has not ended."""
        self._add(suggestion)
        self._note(suggestion)
        if outcome is not None:
            self.tell(suggestion, outcome)

    def _objectives(self, outcome: Outcome) -> list[float]:
        score = _WORST_SCORE if outcome.score is None else outcome.score
        if len(self.study.directions) == 1:
            return [score]
        return [self._worst_merit if outcome.merit is None else outcome.merit, score]

    def _note(self, suggestion: Suggestion) -> None:
        self._used.add(suggestion.trajectory_id)
        self._seed_uses[suggestion.seed] += 1
        if self._free_points:
            self._free_points.note_run(suggestion.values)
        self._next = suggestion.number + 1

    def _add(self, suggestion: Suggestion) -> None:
        """Add a running trial to the study, for a suggestion that Optuna did not make in this process."""
        trial = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=self._encode(suggestion.values),
            distributions=self._distributions,
            system_attrs=dict(suggestion.sampler_state),
        )
        self._trials[suggestion.number] = len(self.study.get_trials(deepcopy=False))
        self.study.add_trial(trial)

    def _ask_grid(self, points: Iterator[tuple[dict[str, Any], int]]) -> Suggestion | None:
        for values, seed in points:
            suggestion = self._suggestion(values, seed, {})
            if suggestion.trajectory_id not in self._used:
                self._add(suggestion)
                return suggestion
        return None

    def _ask_optuna(self) -> Suggestion | None:
        for attempt in range(_ATTEMPTS):
            self.study.sampler = self._optuna_sampler(derive_seed(self._spec.search.seed, self._next, attempt))
            trial = self.study.ask(self._distributions)
            values = self._decode(trial.params)
            seed = self._free_seed(values)
            if seed is not None:
                self._trials[self._next] = trial.number
                state = self.study.get_trials(deepcopy=False)[trial.number].system_attrs
                return self._suggestion(values, seed, state)
            # The point has been run with every seed, and the study already contains the results: discard this trial.
            self.study.tell(trial, state=TrialState.FAIL)
        return self._random_free_point()

    def _random_free_point(self) -> Suggestion | None:
        chooser = random.Random(derive_seed(self._spec.search.seed, self._next, "free"))
        while self._free_points and self._free_points.count:
            values = self._free_points.point(chooser.randrange(self._free_points.count))
            seed = self._free_seed(values)
            if seed is not None:
                suggestion = self._suggestion(values, seed, {})
                self._add(suggestion)
                return suggestion
            # The trajectories of this point have already been run at another point that differs only in
            # `dataset.download`, which is not part of a trajectory's id.
            self._free_points.take(values)
        return None

    def _free_seed(self, values: Mapping[str, Any]) -> int | None:
        """Return the least-used seed with which this point has not been run; None if there is none."""
        free = [s for s in self._spec.seeds if self._id_at(values, s) not in self._used]
        return min(free, key=lambda seed: self._seed_uses[seed], default=None)

    def _suggestion(self, values: Mapping[str, Any], seed: int, state: Mapping[str, Any]) -> Suggestion:
        return Suggestion(
            number=self._next,
            values=dict(values),
            seed=seed,
            trajectory_id=self._id_at(values, seed),
            sampler_state=dict(state),
        )

    def _id_at(self, values: Mapping[str, Any], seed: int) -> str:
        """Return the id of the trajectory at a point with a seed. Ids are cached, because computing them is slow."""
        key = json.dumps([self._encode(values), seed])
        if key not in self._ids:
            try:
                self._ids[key] = trajectory_id(self._spec.trajectory_at(values, seed))
            except SpecError:  # the values are incompatible; the driver will record the trajectory as failed
                self._ids[key] = digest(["invalid", key])[:16]
        return self._ids[key]

    def _encode(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Convert values to Optuna's form: a value from a list becomes JSON text, because it may itself be a list."""
        return {n: v if isinstance(self._spec.space[n], Range) else json.dumps(v) for n, v in values.items()}

    def _decode(self, params: Mapping[str, Any]) -> dict[str, Any]:
        return {name: _plain(self._spec.space[name], value) for name, value in params.items()}

    def _optuna_sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        trials, seed = self._spec.search.trials or 0, seed % 2**32
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            match self._spec.search.sampler:
                case "tpe":
                    # With a constant liar, running trials count as bad ones, so that parallel draws differ. The first
                    # third of the trials, but at most 10 (Optuna's default), are drawn at random.
                    startup = max(1, min(10, trials // 3))
                    return optuna.samplers.TPESampler(
                        n_startup_trials=startup, multivariate=True, constant_liar=True, seed=seed
                    )
                case "nsga2":
                    population = max(4, min(50, trials // 4))
                    return _NSGA2(population_size=population, seed=seed)
                case _:
                    return optuna.samplers.RandomSampler(seed=seed)


class _NSGA2(optuna.samplers.NSGAIISampler):
    """NSGA-II whose choice of parents depends only on the trials.

    Optuna caches the parents of a generation in the study when they are first needed. A study restored from the record
    of suggestions has no such cache and would select other parents.
    """

    def get_parent_population(self, study: optuna.Study, generation: int) -> list[optuna.trial.FrozenTrial]:
        return self.select_parent(study, generation) if generation else []


def _grid(spec: SearchSpec) -> Iterator[tuple[dict[str, Any], int]]:
    return ((values, seed) for values in spec.grid() for seed in spec.seeds)


def _distribution(domain: Domain) -> BaseDistribution:
    if not isinstance(domain, Range):
        return CategoricalDistribution([json.dumps(value) for value in domain])
    high = domain.high if domain.step is None else domain_values(domain)[-1]
    if domain.is_integer:
        return IntDistribution(int(domain.low), int(high), log=domain.log, step=int(domain.step or 1))
    return FloatDistribution(float(domain.low), float(high), log=domain.log, step=domain.step)


def _plain(domain: Domain, value: Any) -> Any:
    """Convert a value from Optuna's form: parse JSON text, and round 0.30000000000000004 to 0.3."""
    if not isinstance(domain, Range):
        return json.loads(value)
    return value if domain.is_integer or domain.step is None else round(value, 12)
