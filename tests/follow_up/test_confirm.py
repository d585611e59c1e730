"""Tests for confirming a search: its best configurations are trained again, with new seeds and with controls."""

import pandas as pd
import pytest
from helpers import in_process

from ticket_search.analysis.confirmation import confirm_table
from ticket_search.errors import SpecError
from ticket_search.follow_up.confirm import confirmation
from ticket_search.launch.run import run_search
from ticket_search.results.reading import load_results
from ticket_search.storage.local import LocalFolder


@pytest.fixture(scope="module")
def searched(search, tmp_path_factory):
    """A finished search whose tickets all match."""
    space = {"pruning_rate": {"low": 0.3, "high": 0.6}, "criterion": ["magnitude", "random"]}
    spec = search(space, seeds=(3, 5), trials=4, sampler="random", tolerance=1.0 - 1e-9, early_stopping=None)
    folder = tmp_path_factory.mktemp("confirm") / "run"
    run_search(spec, folder, engine="inline")
    return LocalFolder(folder)


def matching(folder):
    from ticket_search.analysis.tickets import tickets

    found = tickets(load_results(folder))
    return list(zip(found["trajectory_id"], found["level"].astype(int), strict=True)), found


def test_the_points_of_a_confirmation_are_the_best_configurations(searched):
    best, found = matching(searched)
    spec = confirmation(searched, best, top=2, seeds=3, draws=1)
    assert spec.seeds == (6, 7, 8)
    assert [point["pruning_rate"] for point in spec.points] == list(found["pruning_rate"].head(2))
    assert {point["max_levels"] for point in spec.points} == {2}
    assert spec.planned_trials == 6
    points = [spec.trajectory_at(values, seed=6) for values in spec.grid()]
    assert [point.pruning.criterion for point in points] == list(found["criterion"].head(2))


def test_a_configuration_counts_once_for_all_its_seeds(searched):
    best, _ = matching(searched)
    assert len(confirmation(searched, [best[0], best[0], best[1]], top=5, seeds=1, draws=1).points) == 2


def test_without_a_matching_ticket_there_is_nothing_to_confirm(searched):
    with pytest.raises(SpecError, match="no ticket matches its dense network, so there is nothing to confirm"):
        confirmation(searched, [], top=1, seeds=1, draws=1)


def test_the_command_writes_the_table_and_a_second_run_trains_nothing(searched):
    def confirm():
        said = in_process("confirm", searched, "--top", 2, "--seeds", 3, "--draws", 2, "--engine", "inline")
        assert said.returncode == 0, said.stderr
        return said

    said = confirm()
    table = pd.read_parquet(searched.path / "confirm")
    assert list(table["arm"]) == ["dense", "ticket", "random_reinit", "shuffled_mask"] * 2
    assert (table["seeds"] == 3).all()
    assert table.loc[table["arm"] == "ticket", "verdict"].notna().all()
    assert all(verdict in said.stdout for verdict in table["verdict"].dropna())
    inner = load_results(searched.path / "confirmation")
    assert set(inner.trajectories["seed"]) == {6, 7, 8}
    assert len(inner.controls) == 2 * 3 * 2 * 2
    confirm()
    again = load_results(searched.path / "confirmation")
    pd.testing.assert_frame_equal(again.levels, inner.levels)
    pd.testing.assert_frame_equal(pd.read_parquet(searched.path / "confirm"), table)


def rows(gain, leads=()):
    """Return the rows that `compare` would return for a ticket.

    Args:
        gain: the interval of the ticket's gain.
        leads: the lower bound of the ticket's lead over each control.
    """
    head = {"pruning_rate": 0.2, "strategy": "global", "level": 1}
    arms = [head | {"level": 0, "arm": "dense"}, head | {"arm": "ticket"}]
    arms[1] |= {"test_accuracy_gain_low": gain[0], "test_accuracy_gain_high": gain[1]}
    arms += [
        head | {"arm": name, "test_accuracy_lead_low": low}
        for name, low in zip(("random_reinit", "shuffled_mask"), leads, strict=False)
    ]
    return pd.DataFrame(
        arms, columns=[*head, "arm", *("test_accuracy_gain_low", "test_accuracy_gain_high", "test_accuracy_lead_low")]
    )


@pytest.mark.parametrize(
    ("gain", "leads", "verdict"),
    [
        ((0.001, 0.004), (), "better"),
        ((-0.004, 0.003), (), "matches"),
        ((-0.02, 0.003), (), "undecided"),
        ((-0.02, -0.006), (), "worse"),
        ((-0.004, 0.1), (0.1, 0.2), "matches, beats random_reinit and shuffled_mask"),
        ((-0.02, 0.1), (0.1, -0.1), "undecided, beats random_reinit, does not beat shuffled_mask"),
    ],
)
def test_verdicts(monkeypatch, gain, leads, verdict):
    monkeypatch.setattr("ticket_search.analysis.confirmation.compare", lambda results: rows(gain, leads))
    table = confirm_table(None, margin=0.005)
    assert list(table["verdict"].dropna()) == [verdict]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"points": [{"pruning_rate": 0.5}], "sampler": "random"},
            "points are only for the grid sampler, not for 'random'",
        ),
        (
            {"points": [{"pruning_rate": 0.4}], "sampler": "grid"},
            r"points: pruning_rate 0.4 is not in space.pruning_rate",
        ),
        (
            {"points": [{"strategy": "global"}], "sampler": "grid"},
            r"points: {'strategy': 'global'} must have the fields",
        ),
    ],
)
def test_invalid_points_are_refused(search, changes, message):
    from ticket_search.config.base import validate
    from ticket_search.config.search import SearchSpec

    plain = search({"pruning_rate": [0.5]}).model_dump(mode="json")
    plain["search"]["sampler"] = changes["sampler"]
    with pytest.raises(SpecError, match=message):
        validate(SearchSpec, plain | {"points": changes["points"]})
