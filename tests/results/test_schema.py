import pyarrow as pa
import pytest

from ticket_search.config.space import Range
from ticket_search.results.schema import KEYS, configuration, decode, encode, is_json, schemas

STRING, INT, LONG, DOUBLE, BOOL = "string", "int32", "int64", "double", "bool"


def columns(schema):
    return {field.name: str(field.type) for field in schema}


def test_the_columns_are_those_of_the_contract():
    found = schemas({"pruning_rate": Range(low=0.1, high=0.6), "seed_is_no_field.lr": (1e-3,)})
    assert list(found) == list(KEYS) == ["levels", "trajectories", "curves", "layers", "controls", "early_bird"]
    assert list(columns(found["levels"]).items()) == [
        ("trajectory_id", STRING),
        ("level_key", STRING),
        ("level", INT),
        ("pruning_rate", DOUBLE),
        ("strategy", STRING),
        ("criterion", STRING),
        ("rewind_iteration", LONG),
        ("seed", LONG),
        ("kept_weights", LONG),
        ("prunable_weights", LONG),
        ("density", DOUBLE),
        ("compression", DOUBLE),
        ("val_loss", DOUBLE),
        ("val_accuracy", DOUBLE),
        ("test_loss", DOUBLE),
        ("test_accuracy", DOUBLE),
        ("dense_val_accuracy", DOUBLE),
        ("dense_test_accuracy", DOUBLE),
        ("matching", BOOL),
        ("early_stop_iteration", LONG),
        ("early_stop_test_accuracy", DOUBLE),
        ("iterations", LONG),
        ("train_seconds", DOUBLE),
        ("reused", BOOL),
        ("task", STRING),
        ("metric", STRING),
        ("higher_is_better", BOOL),
        ("val_metric", DOUBLE),
        ("test_metric", DOUBLE),
        ("dense_val_metric", DOUBLE),
        ("dense_test_metric", DOUBLE),
        ("early_stop_test_metric", DOUBLE),
        ("torch_version", STRING),
        ("device", STRING),
        ("threads", LONG),
        ("ticket_search_version", STRING),
        ("model.name", STRING),
        ("dataset.name", STRING),
        ("seed_is_no_field.lr", DOUBLE),
    ]
    assert list(columns(found["trajectories"]).items()) == [
        ("trajectory_id", STRING),
        ("pruning_rate", DOUBLE),
        ("strategy", STRING),
        ("criterion", STRING),
        ("rewind_iteration", LONG),
        ("seed", LONG),
        ("seed_is_no_field.lr", DOUBLE),
        ("status", STRING),
        ("reason", STRING),
        ("levels", INT),
        ("score", DOUBLE),
        ("sparsest_matching_density", DOUBLE),
        ("iterations", LONG),
        ("train_seconds", DOUBLE),
        ("error", STRING),
    ]
    assert list(columns(found["curves"]).items()) == [
        ("trajectory_id", STRING),
        ("level", INT),
        ("iteration", LONG),
        ("train_loss", DOUBLE),
        ("val_loss", DOUBLE),
        ("val_accuracy", DOUBLE),
        ("val_metric", DOUBLE),
    ]
    assert list(columns(found["layers"]).items()) == [
        ("trajectory_id", STRING),
        ("level", INT),
        ("name", STRING),
        ("kept_weights", LONG),
        ("weights", LONG),
        ("density", DOUBLE),
    ]
    assert all(schema.metadata == {b"ticket_search.schema_version": b"3"} for schema in found.values())


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        ((True, False), BOOL),
        ((1, 2), LONG),
        ((None, 5), LONG),
        ((1, 0.5), DOUBLE),
        (("a", "b"), STRING),
        (Range(low=1, high=9), LONG),
        (Range(low=1, high=9.5), DOUBLE),
    ],
)
def test_the_column_of_a_searched_field_has_the_type_of_its_values(domain, expected):
    field = schemas({"training.x": domain})["levels"].field("training.x")
    assert (str(field.type), is_json(field)) == (expected, False)
    assert encode(field, "text") == "text"


@pytest.mark.parametrize("domain", [(True, 1), (100, "20ep"), ({"crop": 4}, None), (None,), ([1], [2])])
def test_values_without_a_common_type_are_json(domain):
    field = schemas({"training.x": domain})["trajectories"].field("training.x")
    assert (field.type, is_json(field)) == (pa.string(), True)
    assert [decode(field, encode(field, value)) for value in domain] == list(domain)
    assert encode(field, {"b": 1, "a": None}) == '{"a": null, "b": 1}'


def test_a_long_field_name_adds_no_second_column_and_other_names_are_kept():
    space = {"pruning.pruning_rate": (0.1, 0.2), "pruning.max_levels": (1, 2), "output_layer_rate": (0.5,)}
    assert [field.name for field in configuration(space)] == [
        "pruning_rate",
        "strategy",
        "criterion",
        "rewind_iteration",
        "seed",
        "pruning.max_levels",
        "output_layer_rate",
    ]
