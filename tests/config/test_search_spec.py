from typing import ClassVar

import pytest

from ticket_search.config.loading import load_search, parse_yaml
from ticket_search.config.settings import ResourcesSpec
from ticket_search.config.space import Range, domain_values
from ticket_search.errors import SpecError


@pytest.fixture
def load(tmp_path):
    def read(text, *settings):
        (tmp_path / "space.yaml").write_text(text)
        return load_search(tmp_path / "space.yaml", settings)

    return read


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 100000.0),
        ("-2e+3", -2000.0),
        ("+1e3", 1000.0),
        ("1.5e2", 150.0),
        ("1.e2", 100.0),
        ("12", 12),
        ("0.5", 0.5),
        ("1e", "1e"),
        ("e3", "e3"),
        ("1e-3x", "1e-3x"),
        ("12e3.4", "12e3.4"),
        ("20ep", "20ep"),
        ("null", None),
        ("'1e-3'", "1e-3"),
        # YAML 1.1 would read the following values as 64, 90, True and False.
        ("0100", 100),
        ("1:30", "1:30"),
        ("yes", "yes"),
        ("on", "on"),
        ("off", "off"),
        ("no", "no"),
    ],
)
def test_numbers_in_yaml(text, value):
    assert (parse_yaml(text, "here"), type(parse_yaml(text, "here"))) == (value, type(value))


@pytest.mark.parametrize("name", ["1e5", "1e-5", "0100", "0812", "0_8", "yes", "2026-01-01", "0o17", "null", "1.5"])
def test_a_name_that_looks_like_another_type_stays_a_string(search, load, name):
    """YAML 1.1 and YAML 1.2 agree on the written file, so earlier versions of the package can read it too."""
    import yaml

    text = search({"pruning_rate": [0.5, 1e-3]}).model_copy(update={"name": name}).to_yaml()
    assert load(text).name == name
    assert yaml.safe_load(text) == parse_yaml(text, "here")


def test_yaml_round_trip(search, load):
    spec = search(
        {
            "pruning_rate": {"low": 0.1, "high": 0.5, "step": 0.1},
            "training.optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True},
            "rewind_iteration": {"low": 0, "high": 10},
            "strategy": ["layerwise", "global"],
            "training.schedule": [{"name": "constant"}, {"name": "step", "milestones": ["1ep", 20]}],
            "max_levels": [None, 3],
        },
        base={
            "training.iterations": "3ep",
            "dataset.augment": {"crop": 1},
            "dataset.normalize": {"mean": [0.5], "std": [1e-5]},
        },
        early_stopping=None,
    )
    assert load(spec.to_yaml()) == spec
    assert load(spec.to_yaml()).to_yaml() == spec.to_yaml()
    assert list(load(spec.to_yaml()).space) == list(spec.space)


def test_settings_are_put_on_top_in_their_order(search, load):
    spec = load(
        search({"pruning_rate": [0.2]}).to_yaml(),
        "training.optimizer.lr=1e-5",
        "space.training.optimizer.lr={low: 1e-4, high: 1, log: true}",
        "space.pruning_rate=null",
        "pruning={max_levels: 3}",
        "pruning.min_density=0.5",
        "search.early_stopping.patience=7",
        "store=/a=b",
    )
    assert spec.training.optimizer.lr == 1e-5
    assert spec.space == {"training.optimizer.lr": Range(low=1e-4, high=1, log=True)}
    assert (spec.pruning.max_levels, spec.pruning.min_density, spec.pruning.strategy) == (3, 0.5, "layerwise")
    assert spec.search.early_stopping.patience == 7
    assert spec.store == "/a=b"


def test_a_point_is_a_trajectory(search):
    spec = search(
        {"pruning_rate": [0.3], "training.optimizer.lr": {"low": 0.1, "high": 0.2}, "pruning.criterion": ["random"]}
    )
    point = spec.trajectory_at({"pruning_rate": 0.3, "training.optimizer.lr": 0.15, "pruning.criterion": "random"}, 7)
    assert (point.pruning.pruning_rate, point.training.optimizer.lr, point.seed) == (0.3, 0.15, 7)
    assert (point.pruning.criterion, point.pruning.max_levels, point.model.name) == ("random", 2, "lenet_16")


def test_a_point_may_set_what_is_null(search):
    spec = search({"dataset.augment.crop": [1, 2]})
    assert spec.trajectory_at({"dataset.augment.crop": 2}, 0).dataset.augment.crop == 2


def test_the_last_field_of_a_grid_varies_fastest(search):
    spec = search(
        {"strategy": ["global", "layerwise"], "pruning_rate": {"low": 0.1, "high": 0.35, "step": 0.1}}, sampler="grid"
    )
    assert spec.grid() == [
        {"strategy": "global", "pruning_rate": 0.1},
        {"strategy": "global", "pruning_rate": 0.2},
        {"strategy": "global", "pruning_rate": 0.3},
        {"strategy": "layerwise", "pruning_rate": 0.1},
        {"strategy": "layerwise", "pruning_rate": 0.2},
        {"strategy": "layerwise", "pruning_rate": 0.3},
    ]
    assert spec.size == 6


@pytest.mark.parametrize(
    ("domain", "values"),
    [
        ({"low": 0.1, "high": 0.5, "step": 0.1}, [0.1, 0.2, 0.3, 0.4, 0.5]),
        ({"low": 0.1, "high": 0.45, "step": 0.1}, [0.1, 0.2, 0.3, 0.4]),
        ({"low": 0, "high": 10, "step": 5}, [0, 5, 10]),
        ({"low": 0, "high": 9, "step": 5}, [0, 5]),
        ({"low": 2, "high": 4}, [2, 3, 4]),
        ({"low": 0.3, "high": 0.9, "step": 0.3}, [0.3, 0.6, 0.9]),
    ],
)
def test_the_values_of_a_range(domain, values):
    found = domain_values(Range(**domain))
    assert found == values
    assert [type(value) for value in found] == [type(value) for value in values]


@pytest.mark.parametrize(
    ("space", "size"),
    [
        ({}, 1),
        ({"pruning_rate": [0.1, 0.2], "rewind_iteration": {"low": 0, "high": 2}}, 6),
        ({"pruning_rate": {"low": 0.1, "high": 0.2}}, None),
        ({"rewind_iteration": {"low": 1, "high": 5, "log": True}}, None),
    ],
)
def test_the_size_of_a_space(search, space, size):
    assert search(space).size == size


def test_the_corners_combine_every_two_values_of_every_two_fields(search):
    spec = search(
        {"pruning_rate": {"low": 0.1, "high": 0.5}, "strategy": ["layerwise", "global"], "rewind_iteration": [0, 1, 2]}
    )
    assert [tuple(corner.values()) for corner in spec.corners()] == [
        (0.1, "layerwise", 0),
        (0.5, "layerwise", 0),
        (0.1, "global", 0),
        (0.1, "layerwise", 1),
        (0.1, "layerwise", 2),
        (0.5, "global", 0),
        (0.5, "layerwise", 1),
        (0.5, "layerwise", 2),
        (0.1, "global", 1),
        (0.1, "global", 2),
    ]


def test_the_latest_rewind_is_checked_with_the_shortest_training(search):
    with pytest.raises(SpecError, match="30 is not before the end of training at iteration 25"):
        search({"rewind_iteration": [0, 30], "training.iterations": [40, 25]})
    with pytest.raises(SpecError, match="30 is not before the end of training at iteration 25"):
        search({"training.iterations": [40, 25], "pruning.rewind_iteration": [0, 30]})


class TestIdentity:
    SPACE: ClassVar = {"pruning_rate": [0.2, 0.3]}

    @pytest.mark.parametrize(
        "settings",
        [
            {"trials": 99},
            {"early_stopping": None},
            {"early_stopping": {"collapse": 0.3, "margin": 0.2}},
            {"max_concurrent": 3},
            {"max_failures": 0},
        ],
    )
    def test_ignores_the_length_and_early_stopping(self, search, settings):
        assert search(self.SPACE, **settings).identity() == search(self.SPACE).identity()

    @pytest.mark.parametrize(
        "change",
        [{"resources": ResourcesSpec(cpus=3, gpus=0.5)}, {"data_dir": "/elsewhere"}, {"store": "/elsewhere"}],
    )
    def test_ignores_resources_and_places(self, search, change):
        spec = search(self.SPACE)
        assert spec.model_copy(update=change).identity() == spec.identity()

    @pytest.mark.parametrize(
        "settings", [{"sampler": "random"}, {"tolerance": 0.1}, {"seed": 1}, {"seeds": (0, 1)}, {"seeds": (1, 0, 2)}]
    )
    def test_depends_on_the_other_settings(self, search, settings):
        assert search(self.SPACE, **settings).identity() != search(self.SPACE).identity()

    @pytest.mark.parametrize(
        "change",
        [
            {"dataset.validation": 301},
            {"dataset.split_seed": 1},
            {"dataset.augment": {"flip": True}},
            {"model.name": "lenet_17"},
            {"training.batch_size": 65},
            {"training.iterations": 41},
            {"training.schedule.warmup": 1},
            {"training.optimizer.lr": 1e-3},
            {"pruning.max_levels": 3},
            {"pruning.pruning_rate": 0.3},
        ],
    )
    def test_depends_on_the_configuration(self, search, change):
        assert search(self.SPACE, base=change).identity() != search(self.SPACE).identity()

    @pytest.mark.parametrize(
        "space",
        [
            {"pruning_rate": [0.2]},
            {"pruning_rate": [0.3, 0.2]},
            {"pruning_rate": {"low": 0.2, "high": 0.3}},
            {"pruning_rate": [0.2, 0.3], "strategy": ["global"]},
        ],
    )
    def test_depends_on_the_space(self, search, space):
        assert search(space).identity() != search(self.SPACE).identity()

    def test_depends_on_the_name(self, search):
        spec = search(self.SPACE)
        assert spec.model_copy(update={"name": "y"}).identity() != spec.identity()
