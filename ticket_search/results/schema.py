"""The columns of the tables. They are a contract: other people's scripts read them."""

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from ticket_search.config.search import Domain, Range, dotted
from ticket_search.errors import RunDirectoryError

#: Raise it when a column changes its name, type or meaning; a reader of version n reads n - 1.
SCHEMA_VERSION = 1
KEYS: dict[str, tuple[str, ...]] = {
    "levels": ("trajectory_id", "level"),
    "trajectories": ("trajectory_id",),
    "curves": ("trajectory_id", "level", "iteration"),
    "layers": ("trajectory_id", "level", "name"),
    "controls": ("trajectory_id", "level", "control", "draw"),
    "early_bird": ("trajectory_id", "iteration", "earlier_iteration"),
}
#: Tables that older versions did not write: where one is absent, it has no rows.
LATER_TABLES = ("controls", "early_bird")
_VERSION = b"ticket_search.schema_version"
_ENCODING = b"ticket_search.encoding"
_CONFIGURATION = {
    "pruning_rate": pa.float64(),
    "strategy": pa.string(),
    "criterion": pa.string(),
    "rewind_iteration": pa.int64(),
    "seed": pa.int64(),
}


def schemas(space: Mapping[str, Domain]) -> dict[str, pa.Schema]:
    """The schema of each table, for a search over `space` (field name -> what it may be)."""
    searched = _searched(space)
    columns = {
        "levels": [
            *_fields(trajectory_id=pa.string(), level_key=pa.string(), level=pa.int32()),
            *_fields(**_CONFIGURATION, kept_weights=pa.int64(), prunable_weights=pa.int64()),
            *_fields(density=pa.float64(), compression=pa.float64()),
            *_fields(val_loss=pa.float64(), val_accuracy=pa.float64()),
            *_fields(test_loss=pa.float64(), test_accuracy=pa.float64()),
            *_fields(dense_val_accuracy=pa.float64(), dense_test_accuracy=pa.float64(), matching=pa.bool_()),
            *_fields(early_stop_iteration=pa.int64(), early_stop_test_accuracy=pa.float64()),
            *_fields(iterations=pa.int64(), train_seconds=pa.float64(), reused=pa.bool_()),
            *searched,
        ],
        "trajectories": [
            *_fields(trajectory_id=pa.string()),
            *configuration(space),
            *_fields(status=pa.string(), reason=pa.string(), levels=pa.int32()),
            *_fields(score=pa.float64(), sparsest_matching_density=pa.float64()),
            *_fields(iterations=pa.int64(), train_seconds=pa.float64(), error=pa.string()),
        ],
        "curves": [
            *_fields(trajectory_id=pa.string(), level=pa.int32(), iteration=pa.int64()),
            *_fields(train_loss=pa.float64(), val_loss=pa.float64(), val_accuracy=pa.float64()),
        ],
        "layers": [
            *_fields(trajectory_id=pa.string(), level=pa.int32(), name=pa.string()),
            *_fields(kept_weights=pa.int64(), weights=pa.int64(), density=pa.float64()),
        ],
        "controls": [
            *_fields(trajectory_id=pa.string(), level=pa.int32(), control=pa.string(), draw=pa.int32()),
            *_fields(level_key=pa.string(), seed=pa.int64(), density=pa.float64()),
            *_fields(val_loss=pa.float64(), val_accuracy=pa.float64()),
            *_fields(test_loss=pa.float64(), test_accuracy=pa.float64()),
            *_fields(early_stop_iteration=pa.int64(), early_stop_test_accuracy=pa.float64()),
            *_fields(iterations=pa.int64(), train_seconds=pa.float64(), reused=pa.bool_()),
        ],
        "early_bird": _fields(
            trajectory_id=pa.string(), iteration=pa.int64(), earlier_iteration=pa.int64(), distance=pa.float64()
        ),
    }
    return {name: pa.schema(fields, {_VERSION: str(SCHEMA_VERSION)}) for name, fields in columns.items()}


def configuration(space: Mapping[str, Domain]) -> list[pa.Field]:
    """The columns that hold a trajectory's configuration and seed, the searched fields among them."""
    return [*_fields(**_CONFIGURATION), *_searched(space)]


def column(name: str) -> str:
    """The column of the searched field `name`: itself, but ``pruning_rate`` for ``pruning.pruning_rate``."""
    short = dotted(name).removeprefix("pruning.")
    return short if short in _CONFIGURATION else name


def is_json(field: pa.Field) -> bool:
    """Whether a column holds JSON text, because the field's values have no type in common."""
    return bool(field.metadata and field.metadata.get(_ENCODING) == b"json")


def encode(field: pa.Field, value: Any) -> Any:
    """A value as its column holds it; None stays None."""
    return json.dumps(value, sort_keys=True) if is_json(field) and value is not None else value


def decode(field: pa.Field, value: Any) -> Any:
    """The inverse of `encode`."""
    return json.loads(value) if is_json(field) and value is not None else value


def check_version(schema: pa.Schema, path: object) -> None:
    """Refuse a table that this version of the package cannot read.

    Raises:
        RunDirectoryError: the schema names no version, or a newer one than `SCHEMA_VERSION`.
    """
    version = (schema.metadata or {}).get(_VERSION)
    if version is None:
        raise RunDirectoryError(f"{path} is not a table of ticket_search: its metadata name no schema version")
    if int(version) > SCHEMA_VERSION:
        raise RunDirectoryError(
            f"{path} has schema version {int(version)}; this ticket_search reads up to {SCHEMA_VERSION}: upgrade it"
        )


def _fields(**types: pa.DataType) -> list[pa.Field]:
    return [pa.field(name, type_) for name, type_ in types.items()]


def _searched(space: Mapping[str, Domain]) -> list[pa.Field]:
    return [_field(name, domain) for name, domain in space.items() if column(name) not in _CONFIGURATION]


def _field(name: str, domain: Domain) -> pa.Field:
    if isinstance(domain, Range):
        return pa.field(name, pa.int64() if domain.is_integer else pa.float64())
    types = {type(value) for value in domain if value is not None}
    for known, type_ in (
        ({bool}, pa.bool_()),
        ({int}, pa.int64()),
        ({int, float}, pa.float64()),
        ({str}, pa.string()),
    ):
        if types and types <= known:
            return pa.field(name, type_)
    return pa.field(name, pa.string(), metadata={_ENCODING: b"json"})
