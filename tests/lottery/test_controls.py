"""Tests for controls, the training runs that a ticket is compared with."""

import pytest
import torch

from ticket_search.errors import SpecError
from ticket_search.lottery.rows import control_rows
from ticket_search.pruning.masks import kept_weights
from ticket_search.tasks.classification import ACCURACY

ALL = ["random_reinit", "random_mask", "shuffled_mask"]


def run(bench, trajectory, stores, store=None, **changes):
    controls = {"kinds": ALL, "draws": 2, "levels": [2]}
    spec = trajectory({"controls": controls, "max_levels": 2, "pruning_rate": 0.5, **changes})
    return spec, bench.run(spec, store or stores())


def test_controls_are_trained_at_the_requested_levels(bench, trajectory, stores):
    _, levels = run(bench, trajectory, stores)
    assert [[(c.kind, c.draw) for c in level.controls] for level in levels] == [
        [],
        [],
        [(kind, draw) for kind in ALL for draw in (0, 1)],
    ]


def test_controls_are_trained_at_every_level_by_default(bench, trajectory, stores):
    _, levels = run(bench, trajectory, stores, controls={"kinds": ["random_mask"]})
    assert [len(level.controls) for level in levels] == [0, 1, 1]


@pytest.mark.parametrize("k", [0, 7])
def test_a_control_has_the_tickets_density_per_layer_and_the_right_initial_weights(bench, trajectory, stores, k):
    _, levels = run(bench, trajectory, stores, rewind_iteration=k)
    ticket, rewind = levels[2], bench.outputs[0].kept[k]
    trained = {control.level.key: i for i, control in enumerate(ticket.controls, 3)}
    drawn = []
    for control in ticket.controls:
        level, given = bench.levels[trained[control.level.key]], bench.inputs[trained[control.level.key]]
        assert (level.start, level.seed) == (k, 0)
        for name, kept in control.level.mask.items():
            assert int(kept.sum()) == int(ticket.mask[name].sum())
            same = torch.equal(kept, ticket.mask[name])
            assert same == (control.kind == "random_reinit")
            if control.kind == "random_reinit":
                assert not torch.equal(given[name], rewind[name] * kept)
                assert torch.equal(given[name] != 0, kept)
            else:
                assert torch.equal(given[name], rewind[name] * kept)
        drawn.append(given["fc1.weight"].tolist())
    assert all(drawn.count(one) == 1 for one in drawn)
    assert [c.level.iterations for c in ticket.controls] == [40 - k] * 6


def test_pruned_weights_of_controls_are_fixed_at_the_tickets_values(bench, trajectory, stores):
    _, levels = run(bench, trajectory, stores, reinit_pruned="initial")
    initial = bench.inputs[0]
    for control, given in zip(levels[2].controls, bench.inputs[3:], strict=True):
        for name, kept in control.level.mask.items():
            assert torch.equal(given[name][~kept], initial[name][~kept])


def test_controls_are_reused_and_only_new_draws_are_trained(bench, trajectory, stores):
    store = stores()
    spec, first = run(bench, trajectory, stores, store)
    assert bench.counts() == {"level_started": 9, "level_finished": 9}
    _, again = run(bench, trajectory, stores, store)
    assert bench.counts() == {"level_reused": 9}
    assert [c.level.curve for c in again[2].controls] == [c.level.curve for c in first[2].controls]
    run(bench, trajectory, stores, store, controls={"kinds": ["random_reinit"], "draws": 3, "levels": [2]})
    assert bench.counts() == {"level_reused": 5, "level_started": 1, "level_finished": 1}
    rows = control_rows(spec, first[2], ACCURACY)
    assert [(row["control"], row["draw"], row["level"]) for row in rows] == [(k, d, 2) for k in ALL for d in (0, 1)]
    assert all(0 <= row["test_accuracy"] <= 1 for row in rows)
    assert {row["density"] for row in rows} == {kept_weights(first[2].mask) / 1184}


def test_controls_need_rewound_weights(trajectory):
    with pytest.raises(SpecError, match=r"\['random_mask'\] are controls for tickets with rewound weights"):
        trajectory({"controls": {"kinds": ["random_mask"]}, "retrain": "finetune"})


def test_controls_for_a_level_past_the_last_are_refused(trajectory):
    with pytest.raises(SpecError, match=r"controls.levels: 7 is above the last level, 2; give 1 to 2"):
        trajectory({"controls": {"kinds": ["random_mask"], "levels": [1, 7]}, "max_levels": 2})


def test_controls_do_not_change_the_trajectory_id(bench, trajectory, stores):
    from ticket_search.config.identity import trajectory_id

    assert trajectory_id(trajectory({"controls": {"kinds": ["random_mask"]}})) == trajectory_id(trajectory())
