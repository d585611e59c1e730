import json
import random
from collections import Counter
from dataclasses import asdict

import pytest
from optuna.trial import TrialState

from ticket_search.config.identity import derive_seed, trajectory_id
from ticket_search.search.sampler import Outcome, Sampler
from ticket_search.search.suggestions import Suggestion, SuggestionRecord

SAMPLERS = ["tpe", "random", "nsga2", "grid"]
MIXED = {"pruning_rate": {"low": 0.1, "high": 0.6}, "strategy": ["layerwise", "global"], "rewind_iteration": [0, 10]}
STEPS = {"pruning_rate": {"low": 0.1, "high": 0.5, "step": 0.1}, "strategy": ["layerwise", "global"]}


def outcome(suggestion):
    """Return a random outcome that depends only on the suggestion; about one trajectory in eight fails."""
    draw = random.Random(suggestion.trajectory_id)
    return Outcome(failed=draw.random() < 0.125, score=4 * draw.random(), merit=draw.random())


def exhaust(sampler, limit=200):
    made = []
    while len(made) < limit and (suggestion := sampler.ask()) is not None:
        made.append(suggestion)
        sampler.tell(suggestion, outcome(suggestion))
    return made


def run(spec, count, *, side_by_side=1, restart_at=None):
    """Return the first `count` suggestions of a search. If `restart_at` is given, restart it after that many."""
    sampler, made, told, running = Sampler(spec), [], {}, []
    choose = random.Random(1)
    while len(made) < count:
        if restart_at is not None and len(made) >= restart_at:
            restart_at, sampler = None, Sampler(spec)
            for suggestion in made:
                plain = Suggestion(**json.loads(json.dumps(asdict(suggestion))))
                sampler.replay(plain, told.get(suggestion.number))
        suggestion = sampler.ask()
        made.append(suggestion)
        running.append(suggestion)
        if len(running) == side_by_side:
            ended = running.pop(choose.randrange(side_by_side))
            told[ended.number] = outcome(ended)
            sampler.tell(ended, told[ended.number])
    return [asdict(suggestion) for suggestion in made]


class TestSuggestions:
    @pytest.mark.parametrize("sampler", SAMPLERS[:3])
    def test_seeds_are_spread_evenly(self, search, sampler):
        made = exhaust(Sampler(search(MIXED, seeds=(7, 3, 5), sampler=sampler)), limit=20)
        assert sorted(Counter(s.seed for s in made).values()) == [6, 7, 7]
        assert [s.seed for s in made[:4]] == [7, 3, 5, 7]

    @pytest.mark.parametrize("sampler", SAMPLERS)
    @pytest.mark.parametrize(
        ("space", "points"),
        [
            ({"pruning_rate": [0.2, 0.5], "strategy": ["layerwise", "global"]}, 4),
            (STEPS, 10),
            ({"rewind_iteration": {"low": 0, "high": 4, "step": 2}, "pruning_rate": [0.3]}, 3),
            ({}, 1),
        ],
        ids=["lists", "float_steps", "integer_steps", "nothing"],
    )
    def test_a_discrete_space_is_exhausted_with_each_point_and_seed_once(self, search, sampler, space, points):
        spec = search(space, seeds=(0, 1), sampler=sampler)
        made = exhaust(Sampler(spec))
        assert len(made) == 2 * points
        assert len({(json.dumps(s.values), s.seed) for s in made}) == 2 * points
        assert {json.dumps(s.values) for s in made} == {json.dumps(point) for point in spec.grid()}
        assert Counter(s.seed for s in made) == {0: points, 1: points}
        assert [s.number for s in made] == list(range(2 * points))

    @pytest.mark.parametrize("sampler", SAMPLERS)
    def test_an_exhausted_sampler_stays_exhausted(self, search, sampler):
        asked = Sampler(search({"strategy": ["global"]}, seeds=(0,), sampler=sampler))
        assert [suggestion is None for suggestion in (asked.ask(), asked.ask(), asked.ask())] == [False, True, True]

    @pytest.mark.parametrize("sampler", SAMPLERS)
    def test_running_points_are_not_suggested_again(self, search, sampler):
        asked = Sampler(search({"pruning_rate": [0.2, 0.3, 0.4]}, seeds=(0, 1), sampler=sampler))
        made = [asked.ask() for _ in range(7)]
        assert made[6] is None
        assert len({s.trajectory_id for s in made[:6]}) == 6

    def test_a_grid_suggests_each_point_with_every_seed_in_order(self, search):
        made = exhaust(
            Sampler(
                search({"strategy": ["global", "layerwise"], "pruning_rate": [0.3, 0.2]}, seeds=(1, 0), sampler="grid")
            )
        )
        assert [(*s.values.values(), s.seed) for s in made] == [
            ("global", 0.3, 1),
            ("global", 0.3, 0),
            ("global", 0.2, 1),
            ("global", 0.2, 0),
            ("layerwise", 0.3, 1),
            ("layerwise", 0.3, 0),
            ("layerwise", 0.2, 1),
            ("layerwise", 0.2, 0),
        ]

    @pytest.mark.parametrize("sampler", SAMPLERS)
    def test_a_suggestion_names_its_trajectory(self, search, sampler):
        spec = search(STEPS, sampler=sampler)
        made = exhaust(Sampler(spec), limit=5)
        assert [s.trajectory_id for s in made] == [trajectory_id(spec.trajectory_at(s.values, s.seed)) for s in made]

    def test_values_keep_their_types_and_ranges(self, search):
        space = {
            "pruning_rate": {"low": 0.1, "high": 0.25, "step": 0.1},
            "rewind_iteration": {"low": 3, "high": 9},
            "training.optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True},
            "max_levels": [None, 3],
            "dataset.download": [True, False],
        }
        made = [s.values for s in exhaust(Sampler(search(space, sampler="random")), limit=24)]
        assert {values["pruning_rate"] for values in made} == {0.1, 0.2}
        assert {type(values["rewind_iteration"]) for values in made} == {int}
        assert {values["rewind_iteration"] for values in made} == set(range(3, 10))
        assert [1e-4 <= values["training.optimizer.lr"] <= 1e-2 for values in made] == [True] * 24
        assert sum(values["training.optimizer.lr"] < 1e-3 for values in made) in range(6, 19)
        assert {values["max_levels"] for values in made} == {None, 3}

    @pytest.mark.parametrize("points", [8, 80])
    def test_near_the_end_of_a_space_a_suggestion_looks_at_one_point(self, search, monkeypatch, points):
        space = {"rewind_iteration": {"low": 0, "high": points // 2 - 1}, "strategy": ["layerwise", "global"]}
        asked = Sampler(search(space, seeds=(0, 1), sampler="random"))
        monkeypatch.setattr("ticket_search.search.sampler._ATTEMPTS", 0)
        looked_at = []
        id_at = asked._id_at
        monkeypatch.setattr(asked, "_id_at", lambda *point: looked_at.append(point) or id_at(*point))
        counts = []
        while asked.ask() is not None:
            counts.append(len(looked_at))
            looked_at.clear()
        # Each suggestion computes three IDs: the point's ID with each of the 2 seeds, and its own.
        assert counts == [3] * 2 * points

    def test_the_point_is_drawn_from_the_free_ones_in_the_order_of_the_grid(self, search, monkeypatch):
        """Earlier versions drew from a list in this order, so their searches get the same points when resumed."""
        monkeypatch.setattr("ticket_search.search.sampler._ATTEMPTS", 0)
        space = {
            "pruning_rate": {"low": 0.1, "high": 0.5, "step": 0.1},
            "rewind_iteration": {"low": 3, "high": 5},
            "training.schedule.milestones": [[10, 20], [10], [5]],
        }
        base = {"training.schedule.name": "step", "training.schedule.milestones": [10]}
        spec = search(space, seeds=(4, 0), sampler="random", base=base)
        asked, used, seeds = Sampler(spec), set(), Counter()
        for number in range(91):
            left = {
                json.dumps(point): free
                for point in spec.grid()
                if (free := [seed for seed in spec.seeds if (json.dumps(point), seed) not in used])
            }
            suggestion = asked.ask()
            if not left:
                break
            expected = random.Random(derive_seed(spec.search.seed, number, "free")).choice(list(left))
            assert json.dumps(suggestion.values) == expected
            assert suggestion.seed == min(left[expected], key=lambda seed: seeds[seed])
            used.add((expected, suggestion.seed))
            seeds[suggestion.seed] += 1
        assert (number, suggestion) == (90, None)

    def test_points_that_make_the_same_trajectories_are_suggested_once(self, search, monkeypatch):
        monkeypatch.setattr("ticket_search.search.sampler._ATTEMPTS", 0)
        space = {"dataset.download": [True, False], "strategy": ["layerwise", "global"]}
        made = exhaust(Sampler(search(space, seeds=(0, 1), sampler="random")))
        assert len({s.trajectory_id for s in made}) == len(made) == 4

    def test_points_are_not_listed(self, search, monkeypatch):
        monkeypatch.setattr("ticket_search.search.sampler._ATTEMPTS", 0)
        fine = {"low": 0.1, "high": 0.5, "step": 1e-6}
        space = {"pruning_rate": fine, "pruning.output_layer_rate": fine, "training.optimizer.lr": fine}
        made = exhaust(Sampler(search(space, seeds=(0,), sampler="random")), limit=20)
        assert len({s.trajectory_id for s in made}) == 20

    @pytest.mark.parametrize("sampler", SAMPLERS)
    def test_a_choice_may_be_a_list_or_a_mapping(self, search, sampler):
        schedules = [{"name": "constant"}, {"name": "step", "milestones": [10, 20]}]
        spec = search({"training.schedule": schedules}, seeds=(0,), sampler=sampler)
        made = exhaust(Sampler(spec))
        assert sorted((s.values["training.schedule"] for s in made), key=str) == sorted(schedules, key=str)
        milestones = {spec.trajectory_at(s.values, s.seed).training.schedule.milestones for s in made}
        assert milestones == {(), (10, 20)}

    def test_the_draws_depend_on_the_seed_of_the_search(self, search):
        draws = [run(search(MIXED, sampler="tpe", seed=seed), 4) for seed in (0, 0, 1)]
        assert (draws[0] == draws[1], draws[0] == draws[2]) == (True, False)

    def test_tpe_learns(self, search):
        """The last 12 of 24 draws are closer to the optimum than the uniform draws at the start."""
        asked, distances = Sampler(search({"pruning_rate": {"low": 0.1, "high": 0.9}})), []
        for _ in range(24):
            suggestion = asked.ask()
            distances.append(abs(suggestion.values["pruning_rate"] - 0.3))
            asked.tell(suggestion, Outcome(score=-distances[-1], merit=0.5))
        assert sum(distances[12:]) < sum(distances[:8])


class TestTelling:
    def state(self, search, outcome, sampler="tpe"):
        asked = Sampler(search(MIXED, sampler=sampler))
        asked.tell(asked.ask(), outcome)
        (trial,) = asked.study.trials
        return trial.state, trial.values

    def test_an_ended_trajectory_counts_with_its_value(self, search):
        assert self.state(search, Outcome(score=2.5, merit=0.9)) == (TrialState.COMPLETE, [2.5])

    def test_a_failed_trajectory_has_no_value(self, search):
        assert self.state(search, Outcome(failed=True, score=2.5, merit=0.9)) == (TrialState.FAIL, None)

    def test_diverging_at_once_is_worse_than_having_only_a_dense_network(self, search):
        assert self.state(search, Outcome()) == (TrialState.COMPLETE, [-1.0])
        assert self.state(search, Outcome(score=0.0, merit=0.9)) == (TrialState.COMPLETE, [0.0])

    def test_nsga2_learns_the_accuracy_and_the_compression(self, search):
        assert self.state(search, Outcome(score=2.5, merit=0.9), "nsga2") == (TrialState.COMPLETE, [0.9, 2.5])
        assert self.state(search, Outcome(), "nsga2") == (TrialState.COMPLETE, [0.0, -1.0])


class TestReplay:
    @pytest.mark.parametrize("space", [MIXED, STEPS], ids=["continuous", "discrete"])
    @pytest.mark.parametrize("sampler", SAMPLERS)
    @pytest.mark.parametrize("side_by_side", [1, 3])
    def test_a_restart_changes_no_suggestion(self, search, space, sampler, side_by_side):
        if sampler == "grid":
            space = space | {"pruning_rate": [0.2, 0.3, 0.4, 0.5]}
        spec = search(space, sampler=sampler)
        whole = run(spec, 20, side_by_side=side_by_side)
        for restart_at in (1, 7, 11, 14, 19):
            assert run(spec, 20, side_by_side=side_by_side, restart_at=restart_at) == whole

    def test_replayed_outcomes_are_in_the_study(self, search):
        spec = search(MIXED)
        asked, again = Sampler(spec), Sampler(spec)
        made = [asked.ask() for _ in range(4)]
        outcomes = [Outcome(score=1.0, merit=0.5), None, Outcome(failed=True), Outcome()]
        for suggestion, what in zip(made, outcomes, strict=True):
            again.replay(suggestion, what)
        assert [(trial.state, trial.values) for trial in again.study.trials] == [
            (TrialState.COMPLETE, [1.0]),
            (TrialState.RUNNING, None),
            (TrialState.FAIL, None),
            (TrialState.COMPLETE, [-1.0]),
        ]
        again.tell(made[1], Outcome(score=3.0, merit=0.5))
        assert again.study.trials[1].values == [3.0]
        assert again.study.best_trial.params["pruning_rate"] == made[1].values["pruning_rate"]

    def test_reordering_the_fields_of_a_grid_skips_no_point(self, search):
        """A search may be resumed with its fields in another order, because the order is not part of its identity."""
        space = {"strategy": ["global", "layerwise"], "pruning_rate": [0.2, 0.5]}
        spec, turned = (
            search(dict(fields), seeds=(0,), sampler="grid") for fields in (space.items(), [*space.items()][::-1])
        )
        assert spec.identity() == turned.identity()
        first, again = exhaust(Sampler(spec), limit=2), Sampler(turned)
        for suggestion in first:
            again.replay(suggestion, None)
        rest = exhaust(again)
        assert len(rest) == 2
        assert len({s.trajectory_id for s in first + rest}) == 4

    def test_numbers_continue_after_a_replay(self, search):
        spec = search(STEPS, sampler="grid")
        again = Sampler(spec)
        for suggestion in exhaust(Sampler(spec), limit=3):
            again.replay(suggestion, None)
        assert again.ask().number == 3


class TestTheRecord:
    def test_appended_suggestions_are_read_back(self, tmp_path):
        record = SuggestionRecord(tmp_path / "run")
        assert record.read() == []
        made = [
            Suggestion(number=n, values={"x": v}, seed=1, trajectory_id="t", sampler_state={"g": n})
            for n, v in enumerate([0.1, None, [1, 2], {"a": True}, 1e-300])
        ]
        for suggestion in made:
            record.append(suggestion)
        assert SuggestionRecord(tmp_path / "run").read() == made

    def test_an_incomplete_line_is_dropped(self, tmp_path):
        record = SuggestionRecord(tmp_path)
        first, second = (Suggestion(number=n, values={}, seed=0, trajectory_id="t") for n in (0, 1))
        record.append(first)
        with (tmp_path / "suggestions.jsonl").open("a") as file:
            file.write('{"number": 1, "val')
        record = SuggestionRecord(tmp_path)
        assert record.read() == [first]
        record.append(second)
        assert record.read() == [first, second]
