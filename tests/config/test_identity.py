"""Keys are frozen, because users' stores and run directories contain them. If a test here fails, fix the code."""

import pytest

from ticket_search.config.base import validate
from ticket_search.config.identity import (
    ENGINE_VERSION,
    PLAIN_EXECUTOR,
    copy_key,
    dense_key,
    derive_seed,
    digest,
    early_bird_key,
    pruned_key,
    rewind_key,
    trajectory_id,
)
from ticket_search.config.pruning import EarlyBirdSpec, PruningSpec
from ticket_search.config.search import SearchSpec
from ticket_search.config.settings import SearchSettings
from ticket_search.config.space import Range
from ticket_search.config.trajectory import (
    AugmentSpec,
    DatasetSpec,
    ModelSpec,
    NormalizeSpec,
    OptimizerSpec,
    ScheduleSpec,
    TrainingSpec,
    TrajectorySpec,
)

PLAIN = TrajectorySpec(
    dataset=DatasetSpec(name="mnist", validation=5000),
    model=ModelSpec(name="lenet_300_100"),
    training=TrainingSpec(
        optimizer=OptimizerSpec(name="adam", lr=1.2e-3), batch_size=60, iterations=20000, evaluate_every=100
    ),
    seed=3,
)
#: A trajectory in which most fields differ from their defaults.
FULL = TrajectorySpec(
    dataset=DatasetSpec(
        name="parquet",
        path="birds",
        validation=7,
        split_seed=1,
        normalize=NormalizeSpec(mean=(0.5,), std=(0.25,)),
        augment=AugmentSpec(crop=4, flip=True),
        download=True,
    ),
    model=ModelSpec(name="torchvision/resnet18"),
    training=TrainingSpec(
        optimizer=OptimizerSpec(name="sgd", lr=0.1, momentum=0.9, weight_decay=1e-4),
        schedule=ScheduleSpec(name="step", milestones=(80, 120), gamma=0.2, warmup=5),
        batch_size=128,
        iterations=160,
        evaluate_every=10,
    ),
    pruning=PruningSpec(
        pruning_rate=0.3,
        strategy="global",
        criterion="random",
        rewind_iteration=20,
        output_layer_rate=0.5,
        min_density=0.05,
        max_levels=9,
    ),
    seed=0,
)
SEARCH = SearchSpec(
    name="frozen",
    dataset=PLAIN.dataset,
    model=PLAIN.model,
    training=PLAIN.training,
    space={"pruning_rate": Range(low=0.1, high=0.6), "strategy": ("layerwise", "global")},
    seeds=(0, 1),
    search=SearchSettings(trials=8),
)
DATA = "0123456789abcdef0123456789abcdef"


def test_frozen_digests():
    assert digest({"b": [1, 0.5, None, "é"], "a": True}) == "e13aafdfc924cc040d95fb9ba605861a"
    assert derive_seed(0, "order", 3) == 6782676000726402274


def test_frozen_trajectory_ids():
    assert trajectory_id(PLAIN) == "fea4ccf492128aed"
    assert trajectory_id(FULL) == "96a56d2bb762b99d"


def test_frozen_level_keys():
    assert dense_key(PLAIN, data=DATA, network="") == "9b5f7177d21772c5770df3ce0f6047ca"
    assert dense_key(FULL, data=DATA, network="f00") == "159b8ee7aaf8781b42ff3eddd32966fb"
    assert pruned_key("parent", PLAIN.pruning, 1) == "050c59d9d5cb484df566fe65c4a72dd7"
    assert pruned_key("parent", FULL.pruning, 1) == "959bfd1b00ab31116ba99f44a6d54e32"
    assert rewind_key("dense", 500) == "711bc38af18f654fea2f6ab3256faff6"
    assert copy_key("start", 2) == "68bc5d8952de8b681e79332380136b9d"
    assert pruned_key("parent", PruningSpec(ticket=DATA, rewind_iteration=5), 1) == "2c01f0850b560d7b6ed92f1569d8f34c"
    early = PruningSpec(early_bird=EarlyBirdSpec(window=3))
    assert early_bird_key("dense", EarlyBirdSpec(window=3), early) == "f0999648e56a3fc70def4ce6881a6953"
    # The early-bird settings affect the key of a pruned level only through its parent's key.
    assert pruned_key("parent", early, 1) == pruned_key("parent", PLAIN.pruning, 1)


def test_frozen_search():
    assert SEARCH.identity() == "d52370074baf8480c83592d5fac22481"


def test_another_task_or_executor_changes_the_level_key():
    """Editing the source of a user's task or executor changes the level key too, even if its name stays the same."""
    task = PLAIN.model_copy(update={"task": "own:Task"})
    own = {"name": "own:Executor", "source": "0"}
    keys = [
        dense_key(PLAIN, data=DATA, network=""),
        dense_key(task, data=DATA, network="", task="0"),
        dense_key(task, data=DATA, network="", task="1"),
        dense_key(PLAIN, data=DATA, network="", executor=own),
        dense_key(PLAIN, data=DATA, network="", executor=own | {"source": "1"}),
        pruned_key("parent", PLAIN.pruning, 1),
        pruned_key("parent", PLAIN.pruning, 1, own),
        pruned_key("parent", PruningSpec(ticket=DATA), 1),
        pruned_key("parent", PruningSpec(ticket=DATA), 1, own),
    ]
    assert len(set(keys)) == len(keys)
    assert trajectory_id(task) != trajectory_id(PLAIN)


def test_the_name_of_an_executor_is_not_part_of_the_level_key():
    """The level key contains the executor's key instead of its name, and ``auto`` and ``plain`` have the same key."""
    plain = PLAIN.model_copy(update={"training": PLAIN.training.model_copy(update={"executor": "plain"})})
    assert dense_key(plain, data=DATA, network="") == dense_key(PLAIN, data=DATA, network="")


def test_the_frozen_engine_version_and_executor():
    assert (ENGINE_VERSION, PLAIN_EXECUTOR) == (1, {"name": "plain", "width": 1})


def test_frozen_defaults():
    """Keys omit defaults, so changing a default requires a new ENGINE_VERSION."""
    assert PLAIN.model_dump(mode="json") == {
        "task": "classification",
        "dataset": {
            "name": "mnist",
            "path": None,
            "validation": 5000,
            "split_seed": 0,
            "normalize": None,
            "augment": None,
            "download": False,
        },
        "model": {"name": "lenet_300_100", "init": None},
        "training": {
            "optimizer": {"name": "adam", "lr": 0.0012, "momentum": 0.0, "weight_decay": 0.0},
            "schedule": {"name": "constant", "milestones": [], "gamma": 0.1, "warmup": 0},
            "batch_size": 60,
            "iterations": 20000,
            "evaluate_every": 100,
            "precision": "fp32",
            "executor": "auto",
        },
        "pruning": {
            "pruning_rate": 0.2,
            "target_densities": None,
            "strategy": "layerwise",
            "criterion": "magnitude",
            "rewind_iteration": 0,
            "retrain": "weights",
            "reinit_kept": "rewind",
            "reinit_pruned": "zero",
            "conv_layer_rate": 1.0,
            "output_layer_rate": 1.0,
            "min_density": 0.01,
            "max_levels": None,
            "early_bird": None,
            "ticket": None,
            "ticket_weights": "ticket",
        },
        "controls": {"kinds": [], "draws": 1, "levels": None},
        "seed": 3,
    }
    assert SEARCH.model_dump(mode="json", include={"search", "resources", "data_dir", "store"}) == {
        "search": {
            "trials": 8,
            "sampler": "tpe",
            "objective": "sparsest_matching",
            "tolerance": 0.0,
            "max_concurrent": None,
            "max_failures": 2,
            "checkpoint_seconds": 60.0,
            "seed": 0,
            "early_stopping": {
                "collapse": 0.1,
                "collapse_levels": 2,
                "margin": 0.005,
                "patience": 2,
                "worst_fraction": 0.5,
                "min_trajectories": 4,
            },
        },
        "resources": {"cpus": 1.0, "gpus": 0.0, "lanes": None},
        "data_dir": None,
        "store": None,
    }
    assert Range(low=0, high=1).model_dump() == {"low": 0, "high": 1, "log": False, "step": None}
    assert AugmentSpec().model_dump() == {"crop": 0, "flip": False}


def updated(spec, path, value):
    first, _, rest = path.partition(".")
    return spec.model_copy(update={first: updated(getattr(spec, first), rest, value) if rest else value})


def key(spec):
    return dense_key(spec, data=DATA, network="")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("dataset.split_seed", 0),
        ("dataset.augment", None),
        ("task", "classification"),
        ("training.precision", "fp32"),
        ("training.executor", "auto"),
        ("training.schedule", ScheduleSpec(name="constant")),
        ("training.optimizer.momentum", 0.0),
        ("pruning", PruningSpec(pruning_rate=0.2, strategy="layerwise")),
    ],
)
def test_an_explicit_default_changes_no_key(path, value):
    spelled = updated(PLAIN, path, value)
    assert (trajectory_id(spelled), key(spelled)) == (trajectory_id(PLAIN), key(PLAIN))
    assert pruned_key("p", spelled.pruning, 1) == pruned_key("p", PLAIN.pruning, 1)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed", 4),
        ("dataset.validation", 4999),
        ("dataset.split_seed", 1),
        ("dataset.augment", AugmentSpec(crop=1)),
        ("dataset.normalize", NormalizeSpec(mean=(0.0,), std=(1.0,))),
        ("model.name", "lenet_300_101"),
        ("training.batch_size", 61),
        ("training.iterations", 20001),
        ("training.evaluate_every", 99),
        ("training.schedule.warmup", 1),
        ("training.optimizer.lr", 1.3e-3),
        ("training.optimizer.weight_decay", 1e-9),
    ],
)
def test_fields_that_change_the_key_of_level_0(path, value):
    assert key(updated(PLAIN, path, value)) != key(PLAIN)
    assert trajectory_id(updated(PLAIN, path, value)) != trajectory_id(PLAIN)


@pytest.mark.parametrize(
    ("path", "value"),
    [("dataset.download", True), ("pruning.pruning_rate", 0.3), ("pruning.rewind_iteration", 5)],
)
def test_fields_that_do_not_change_the_key_of_level_0(path, value):
    assert key(updated(PLAIN, path, value)) == key(PLAIN)


def test_the_data_and_a_users_network_change_the_key_of_level_0():
    assert dense_key(PLAIN, data="x", network="") != key(PLAIN)
    assert dense_key(PLAIN, data=DATA, network="x") != key(PLAIN)


@pytest.mark.parametrize(
    "change",
    [
        {"pruning_rate": 0.3},
        {"strategy": "global"},
        {"criterion": "random"},
        {"rewind_iteration": 1},
        {"output_layer_rate": 0.5},
        {"conv_layer_rate": 0.5},
        {"strategy": "global", "output_layer_rate": 0.0},
        {"target_densities": (0.8,)},
        {"target_densities": (0.8, 0.5)},
        {"retrain": "finetune"},
        {"reinit_kept": "sign"},
        {"reinit_pruned": "initial"},
    ],
)
def test_fields_that_change_the_key_of_a_pruned_level(change):
    assert pruned_key("p", PruningSpec(**change), 1) != pruned_key("p", PruningSpec(), 1)


def test_a_pruned_level_depends_on_its_parent():
    assert pruned_key("p", PruningSpec(), 1) != pruned_key("q", PruningSpec(), 1)


def test_the_length_of_a_trajectory_does_not_change_its_level_keys():
    assert pruned_key("p", PruningSpec(min_density=0.5, max_levels=3), 1) == pruned_key("p", PruningSpec(), 1)


def test_a_single_target_density_is_one_shot_pruning():
    one, other = (
        validate(PruningSpec, {"target_densities": targets, "pruning_rate": rate})
        for targets, rate in ((0.1, 0.2), ([0.1], 0.5))
    )
    assert one.target_densities == (0.1,)
    assert pruned_key("p", one, 1) == pruned_key("p", other, 1)


def test_large_final_is_magnitude():
    assert pruned_key("p", PruningSpec(criterion="large_final"), 1) == pruned_key("p", PruningSpec(), 1)


def test_a_level_depends_on_its_own_and_the_next_target_only():
    one, other = (PruningSpec(target_densities=targets) for targets in ((0.5, 0.2, 0.1), (0.5, 0.2, 0.05)))
    assert [pruned_key("p", one, n) == pruned_key("p", other, n) for n in (1, 2, 3)] == [True, False, False]


def test_the_global_strategy_ignores_the_rate_of_the_output_layer():
    assert pruned_key("p", PruningSpec(strategy="global", output_layer_rate=0.5), 1) == pruned_key(
        "p", PruningSpec(strategy="global"), 1
    )


def test_permission_to_download_does_not_change_the_trajectory_id():
    assert trajectory_id(updated(PLAIN, "dataset.download", True)) == trajectory_id(PLAIN)


def test_seeds_for_different_purposes_differ_and_have_63_bits():
    seeds = [derive_seed(s, p, e) for s in (0, 1) for p in ("order", "augment") for e in range(50)]
    assert (len(set(seeds)), min(seeds) >= 0, max(seeds) < 2**63) == (200, True, True)


def test_epochs_become_iterations():
    training = {
        "iterations": "20ep",
        "evaluate_every": "1ep",
        "schedule": ScheduleSpec(name="step", milestones=("8ep", 3), warmup="2ep"),
    }
    resolved = updated(PLAIN, "training", PLAIN.training.model_copy(update=training)).resolve(630).training
    assert (resolved.iterations, resolved.evaluate_every) == (200, 10)
    assert (resolved.schedule.milestones, resolved.schedule.warmup) == ((80, 3), 20)
