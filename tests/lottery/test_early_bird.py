"""Early-bird ends the training of the dense network once the mask that pruning would produce is stable."""

import json
import re

import pytest
import torch

from ticket_search.config.identity import trajectory_id
from ticket_search.config.pruning import EarlyBirdSpec
from ticket_search.errors import SpecError
from ticket_search.lottery.early_bird import EarlyBird
from ticket_search.lottery.rows import control_rows, early_bird_rows, level_row
from ticket_search.pruning.masks import distance
from ticket_search.tasks.classification import ACCURACY

#: Seven epochs of 17 iterations, enough for the masks of lenet_16 to become stable.
LONG = {"training.iterations": 119, "training.evaluate_every": 50, "pruning_rate": 0.5, "max_levels": 1}
EARLY = {"threshold": 0.12, "window": 3}


def bits(text):
    return {"a": torch.tensor([character == "1" for character in text])}


def test_the_distance_is_the_fraction_of_differing_weights():
    one = {"a": torch.tensor([[True, False], [True, True]]), "b": torch.tensor([True, True, False, False])}
    other = {"a": torch.tensor([[True, True], [True, False]]), "b": torch.tensor([True, True, False, True])}
    assert distance(one, other) == 3 / 8
    assert distance(one, one) == 0.0


def test_training_ends_when_the_last_mask_is_near_all_others_in_the_window():
    masks = ["11110000", "11101000", "11100100", "11100100", "11100010", "11100010", "11100010"]
    watch = EarlyBird(EarlyBirdSpec(threshold=0.2, window=3, every=10), lambda weights: bits(masks[weights["i"]]))
    said = [watch(10 * i, {"i": torch.tensor(i)}) for i in range(len(masks))]
    assert said == [False, False, False, False, False, False, True]
    assert [(d.iteration, d.earlier_iteration, d.distance) for d in watch.distances] == [
        (10, 0, 0.25),
        *((20, 0, 0.25), (20, 10, 0.25)),
        *((30, 10, 0.25), (30, 20, 0.0)),
        *((40, 20, 0.25), (40, 30, 0.25)),
        *((50, 30, 0.25), (50, 40, 0.0)),
        *((60, 40, 0.0), (60, 50, 0.0)),
    ]


def test_a_distance_equal_to_the_threshold_does_not_end_the_training():
    masks = ["11110000", "11101000"]
    for threshold, ends in ((0.25, False), (0.26, True)):
        watch = EarlyBird(
            EarlyBirdSpec(threshold=threshold, window=2, every=1), lambda weights: bits(masks[weights["i"]])
        )
        assert [watch(i, {"i": torch.tensor(i)}) for i in (0, 1)] == [False, ends]


def test_the_state_survives_a_checkpoint():
    masks = [bits(text) for text in ("1100", "1010", "1010", "1010")]
    spec = EarlyBirdSpec(threshold=0.1, window=3, every=1)
    whole, before, after = (EarlyBird(spec, lambda weights: masks[weights["i"]]) for _ in range(3))
    said = [whole(i, {"i": torch.tensor(i)}) for i in range(4)]
    found = [before(i, {"i": torch.tensor(i)}) for i in range(2)]
    record, tensors = before.state()
    after.restore(json.loads(json.dumps(record)), tensors)
    found += [after(i, {"i": torch.tensor(i)}) for i in (2, 3)]
    assert found == said == [False, False, False, True]
    assert after.distances == whole.distances
    assert {i: m["a"].tolist() for i, m in after._masks.items()} == {
        i: m["a"].tolist() for i, m in whole._masks.items()
    }


def test_the_dense_training_ends_early_and_gives_the_tickets_mask(bench, trajectory, stores):
    plain, spec = trajectory(LONG), trajectory({**LONG, "early_bird": EARLY})
    full = bench.run(plain, stores())
    levels = bench.run(spec, stores())
    ended = levels[0].iterations
    assert ended < full[0].iterations == 119
    assert ended % 17 == 0
    assert levels[0].curve[-1].iteration == ended
    assert levels[0].curve[:-1] == full[0].curve[: len(levels[0].curve) - 1]
    # Training ended at the first mask whose distances to the two masks before it are both below the threshold.
    by_mask = {}
    for each in levels[0].mask_distances:
        by_mask.setdefault(each.iteration, []).append(each.distance)
    near = [i for i, found in by_mask.items() if len(found) == 2 and max(found) < EARLY["threshold"]]
    assert near == [ended]
    # The weights at that iteration are pruned. As usual, the ticket starts from the rewind weights and is trained to
    # the end.
    assert all(torch.equal(levels[1].mask[n], kept) for n, kept in watched(bench, spec, ended).items())
    assert all(torch.equal(bench.inputs[-1][n], bench.inputs[0][n] * kept) for n, kept in levels[1].mask.items())
    assert levels[1].iterations == 119
    assert full[0].mask_distances == levels[1].mask_distances == ()


def watched(bench, spec, iteration):
    """Return the mask that keeps, in each layer, the larger half of the weights at `iteration`, by magnitude."""
    final = next(out.weights for out in bench.outputs if out.iterations == iteration)
    mask = {}
    for name in ("fc1.weight", "output.weight"):
        size = final[name].abs().flatten()
        mask[name] = (final[name].abs() > size.kthvalue(round(0.5 * size.numel())).values).view_as(final[name])
    return mask


def test_tickets_are_compared_with_the_fully_trained_dense_network(bench, trajectory, stores):
    """A dense network whose training ended early would be too easy to match, so it is not the baseline."""
    store, spec = stores(), trajectory({**LONG, "early_bird": EARLY})
    plain = bench.run(trajectory(LONG), store)
    levels = bench.run(spec, store)
    (control,) = levels[0].controls
    assert (control.kind, control.level.reused, control.level.iterations) == ("dense", True, 119)
    assert control.level.key == plain[0].key != levels[0].key
    assert levels[0].dense is control.level
    assert plain[0].dense is plain[0]
    rows = [level_row(spec, level, levels[0].dense, 0.0, ACCURACY) for level in levels]
    assert [row["dense_val_accuracy"] for row in rows] == [plain[0].val_metric] * 2
    assert rows[0]["matching"] == (levels[0].val_metric >= plain[0].val_metric)
    assert [row["control"] for row in control_rows(spec, levels[0], ACCURACY)] == ["dense"]
    # Both trajectories use the same rewind weights, so only two levels of each were trained.
    assert bench.counts()["level_started"] == 2 + 2


def test_training_runs_to_its_end_if_the_masks_do_not_settle(bench, trajectory, stores):
    levels = bench.run(trajectory({**LONG, "early_bird": EARLY | {"threshold": 1e-4}}), stores())
    full = bench.run(trajectory(LONG), stores())
    assert levels[0].curve == full[0].curve
    assert len(levels[0].mask_distances) == 1 + 5 * 2
    assert levels[0].key != full[0].key


def test_a_reused_early_level_has_its_distances(bench, trajectory, stores):
    store, spec = stores(), trajectory({**LONG, "early_bird": EARLY})
    first, again = bench.run(spec, store)[0], bench.run(spec, store)[0]
    assert again.reused
    assert again.mask_distances == first.mask_distances != ()
    rows = early_bird_rows(spec, again)
    assert rows[0] == {
        "trajectory_id": trajectory_id(spec),
        "iteration": 34,
        "earlier_iteration": 17,
        "distance": first.mask_distances[0].distance,
    }


def test_trajectories_with_the_same_first_mask_share_level_0(bench, trajectory, stores):
    store = stores()
    one = bench.run(trajectory({**LONG, "early_bird": EARLY, "rewind_iteration": 20}), store)
    other = bench.run(trajectory({**LONG, "early_bird": EARLY, "retrain": "learning_rate"}), store)
    third = bench.run(trajectory({**LONG, "early_bird": EARLY, "pruning_rate": 0.4}), store)
    assert one[0].key == other[0].key != third[0].key
    assert [levels[0].reused for levels in (one, other, third)] == [False, True, False]


def test_a_rewind_past_the_early_end_uses_the_fully_trained_dense_network(bench, trajectory, stores):
    bench.run(trajectory({**LONG, "early_bird": EARLY, "rewind_iteration": 110}), stores())
    whole, early, ticket = bench.outputs
    assert early.iterations < 110 < whole.iterations
    assert all(torch.equal(bench.inputs[2][n], w) for n, w in whole.kept[110].items() if "weight" not in n)
    assert ticket.iterations == 9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"training.iterations": 80, "early_bird": {}},
            "pruning.early_bird: 5 masks, one every 17 iterations, need 85 iterations, but level 0 has 80; "
            "give a smaller window or interval, or train longer",
        ),
        (
            {"early_bird": {}, "criterion": "synflow"},
            "early_bird compares masks computed from the weights during training, but criterion 'synflow' needs more "
            "than the weights; set criterion to 'magnitude' or 'large_final' or 'small_final', or early_bird to null",
        ),
        (
            {"early_bird": {}, "pruning_rate": 0.05},
            "early_bird.threshold 0.1 would end level 0 at the first comparison: with pruning_rate 0.05, two masks "
            "differ in at most 0.1 of the weights; choose a threshold below that",
        ),
        (
            {"early_bird": {}, "target_densities": 0.04},
            "with target_densities 0.04, two masks differ in at most 0.08 of the",
        ),
        (
            {"early_bird": {"every": 5}, "retrain": "finetune"},
            "set retrain to 'learning_rate' to keep the trained weights",
        ),
        ({"early_bird": {"window": 1}}, "early_bird.window: 1 is not valid"),
        ({"early_bird": {"threshold": 1.0}}, "early_bird.threshold: 1.0 is not valid"),
        ({"early_bird": {"every": "0ep"}}, "'0ep' is not a training duration"),
        (
            {"early_bird": {"every": 30, "window": 2}},
            "2 masks, one every 30 iterations, need 60 iterations, but level 0 has 40",
        ),
    ],
)
def test_impossible_settings_are_refused(trajectory, changes, message):
    with pytest.raises(SpecError, match=re.escape(message)):
        trajectory(changes).resolve(1137)
