"""The estimate of a search's disk usage is close to its actual usage."""

import math
from dataclasses import replace

import pytest
from by_hand import run_by_hand

from ticket_search.launch import preflight
from ticket_search.launch.disk import Estimate, NetworkSize, describe, estimate, in_words
from ticket_search.models import check as check_model
from ticket_search.storage.folder import open_folder
from ticket_search.tasks import classification

NOTHING = Estimate(levels=1.0, dense=0.0, masks=0.0, tables=0.0)
LENET = {"model.name": "lenet_300_100"}
#: Searches by name: the space, changes to the base, and the number of trials (None means the whole grid).
SPACES = {
    "few trajectories": ({"pruning_rate": [0.3, 0.6]}, {}, None),
    "many small ones": ({"pruning_rate": [0.3, 0.4, 0.5, 0.6], "rewind_iteration": [0, 5, 10, 20]}, {}, None),
    "mostly dense networks": ({"pruning_rate": [0.3, 0.6], "training.optimizer.lr": [1e-3, 2e-3]}, LENET, None),
    "rewinds from a range": ({"rewind_iteration": {"low": 0, "high": 30}, "pruning_rate": [0.2, 0.5]}, LENET, 6),
    "more masks": ({"pruning_rate": [0.15, 0.2, 0.25]}, {**LENET, "pruning.max_levels": 6}, None),
    "mostly curves": ({"pruning_rate": [0.3, 0.6]}, {"training.evaluate_every": 1}, None),
    "networks of two sizes": ({"model.name": ["lenet_300_100", "lenet_16"]}, {}, None),
}


def taken(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(("space", "base", "trials"), SPACES.values(), ids=SPACES.keys())
def test_the_estimate_is_near_the_real_use(search, tmp_path, space, base, trials):
    sampler = "random" if trials else "grid"
    spec = search(space, seeds=(0, 1), base=base, early_stopping=None, sampler=sampler, trials=trials)
    found = estimate(spec, preflight.check(spec, local=False).sizes)
    run_by_hand(spec, open_folder(tmp_path))
    store, whole = taken(tmp_path / "store"), taken(tmp_path)
    assert whole / 1.5 < found.total < whole * 1.5
    assert store / 1.5 < found.dense + found.masks < store * 1.5
    assert (whole - store) / 1.5 < found.tables < (whole - store) * 1.5


@pytest.mark.parametrize("name", ["lenet_300_100", "lenet_16", "lenet_1", "lenet_7_5_3_2"])
@pytest.mark.parametrize(("shape", "classes"), [((1, 8, 8), 10), ((3, 32, 32), 100), ((1, 1, 1), 2), ((2, 5, 7), 3)])
def test_the_size_of_a_fully_connected_network_is_known_without_building_it(trajectory, name, shape, classes):
    spec = trajectory({"model.name": name})
    found = classification._network_size(spec.model, {"image_shape": shape, "classes": classes})
    values, prunable = check_model(spec.model, shape, classes)
    assert found == NetworkSize(values=values, prunable=prunable)


def test_the_sizes_cover_every_network_and_data_set_of_the_space(search):
    spec = search({"model.name": ["lenet_16", "conv2"], "dataset.validation": [100, 300]})
    sizes = preflight.check(spec, local=False).sizes
    images = {(name, dataset.validation): images for (name, dataset), (_, images) in sizes.items()}
    assert images == {(name, v): 1437 - v for name in ("lenet_16", "conv2") for v in (100, 300)}
    assert {s.values for (name, _), (s, _) in sizes.items() if name == "lenet_16"} == {64 * 16 + 16 + 16 * 10 + 10}
    assert {s.values for (name, _), (s, _) in sizes.items() if name == "conv2"} != {0}


def test_a_space_with_unchecked_data_sets_has_an_estimate(search):
    space = {"dataset.validation": {"low": 100, "high": 400}, "pruning_rate": {"low": 0.2, "high": 0.5}}
    spec, fixed = search(space), search({"pruning_rate": {"low": 0.2, "high": 0.5}})
    found = estimate(spec, preflight.check(spec, local=False).sizes)
    expected = estimate(fixed, preflight.check(fixed, local=False).sizes)
    assert found.levels == expected.levels
    assert found.dense > expected.dense  # each validation split has its own dense network


def test_a_space_with_invalid_points_has_an_estimate(search):
    """The space has invalid combinations of three fields. The check does not find them: it looks only at pairs."""
    space = {
        "rewind_iteration": [0, 20],
        "training.batch_size": [32, 512],
        "training.iterations": [60, "1ep"],
        "pruning_rate": {"low": 0.2, "high": 0.5},
    }
    spec = search(space, base={"training.evaluate_every": 1})
    found = estimate(spec, preflight.check(spec, local=False).sizes)
    assert found.levels == 3
    assert math.isfinite(found.total)


def test_the_estimate_grows_with_the_trials_and_seeds(search):
    def total(seeds, trials):
        spec = search({"pruning_rate": {"low": 0.2, "high": 0.5}}, seeds=seeds, trials=trials)
        return estimate(spec, preflight.check(spec, local=False).sizes)

    one, more, wider = total((0,), 10), total((0,), 20), total((0, 1), 20)
    assert one.dense == more.dense == wider.dense / 2
    assert 1.8 < more.masks / one.masks < 2.2
    assert one.total == one.dense + one.masks + one.tables


def test_the_estimate_counts_levels_down_to_the_lowest_density(search):
    spec = search({"pruning_rate": [0.5]}, base={"pruning.max_levels": None, "pruning.min_density": 0.125})
    assert estimate(spec, preflight.check(spec, local=False).sizes).levels == 4  # densities 1, 1/2, 1/4, 1/8


@pytest.mark.parametrize("where", [".", "not/there/yet"])
def test_too_little_free_space_is_reported(search, tmp_path, where):
    spec = search({"pruning_rate": [0.5]}, seeds=(0,))
    huge = replace(NOTHING, dense=1e18)
    said = describe(spec, huge, open_folder(tmp_path / where))
    assert said.startswith("disk: about 1000000.0 TB (1000000.0 TB of weights, 0 B of masks and curves, ")
    assert "for 1 trajectory of 1 level, if none is stopped early; only " in said
    assert said.endswith(f" is free at {tmp_path}")


def test_enough_free_space_is_not_reported(search, tmp_path, s3):
    spec = search({"pruning_rate": [0.5]}, seeds=(0,))
    assert "free" not in describe(spec, NOTHING, open_folder(tmp_path))
    assert "free" not in describe(spec, replace(NOTHING, dense=1e18), open_folder(s3.location("endless")))


def test_a_small_disk_is_reported_as_too_small(search, small_disk):
    spec = search({"pruning_rate": {"low": 0.2, "high": 0.5}}, base={"model.name": "lenet_300_100"})
    found = estimate(spec, preflight.check(spec, local=False).sizes)
    said = describe(spec, found, open_folder(small_disk / "run/store"))
    assert said.endswith(f"; only 410 kB is free at {small_disk}")


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (9_940, "9.9 kB"), (999_600, "1.0 MB"), (2.5e12, "2.5 TB")],
)
def test_bytes_in_words(size, words):
    assert in_words(size) == words
