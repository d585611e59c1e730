"""The schemas of the tables. Change them with care, because users' scripts read the columns."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from ticket_search.config.space import Domain, Range, dotted
from ticket_search.errors import RunDirectoryError
from ticket_search.results.columns import SEARCHED, table_columns
from ticket_search.results.figures import CONFIGURATION, CONFIGURATION_NAMES, SCHEMA_VERSION, SEED, Column

KEYS: dict[str, tuple[str, ...]] = {
    "levels": ("trajectory_id", "level"),
    "trajectories": ("trajectory_id",),
    "curves": ("trajectory_id", "level", "iteration"),
    "layers": ("trajectory_id", "level", "name"),
    "controls": ("trajectory_id", "level", "control", "draw"),
    "early_bird": ("trajectory_id", "iteration", "earlier_iteration"),
}
#: Tables that a directory of the first schema version may lack. A missing table is then treated as empty.
LATER_TABLES = ("controls", "early_bird")
FIRST_VERSION = 1
_VERSION = b"ticket_search.schema_version"
_ENCODING = b"ticket_search.encoding"
_TYPES = {"string": pa.string(), "int32": pa.int32(), "int64": pa.int64(), "double": pa.float64(), "bool": pa.bool_()}
_COLUMNS_OF_THEIR_OWN = (*CONFIGURATION_NAMES, SEED.name)


def schemas(space: Mapping[str, Domain]) -> dict[str, pa.Schema]:
    """Return the schema of each table, for a search over `space` (the domain of each field, by name)."""
    return {name: _schema(columns, space) for name, columns in table_columns().items()}


def _schema(columns: Sequence[Column], space: Mapping[str, Domain]) -> pa.Schema:
    # A dict removes duplicates: a searched field, such as `model.name`, may also have a declared column.
    fields = {field.name: field for each in columns for field in _fields_of(each, space)}
    return pa.schema(list(fields.values()), {_VERSION: str(SCHEMA_VERSION)})


def later_columns(name: str, version: int) -> list[Column]:
    """Return the columns added to a table after the given schema version."""
    return [column for column in table_columns()[name] if column.since > version]


def version_of(schema: pa.Schema) -> int:
    """Return the schema version of a table; 0 if it has none."""
    return int((schema.metadata or {}).get(_VERSION, 0))


def upgraded(table: pa.Table, schema: pa.Schema, later: Sequence[Column]) -> pa.Table:
    """Convert a table of an earlier schema version to the current version.

    Args:
        table: the table.
        schema: the current schema.
        later: the columns that the table may lack; see `later_columns`.

    Raises:
        ValueError: the table has unknown columns, or lacks columns other than `later`; the message names them.
    """
    table = with_later_columns(table, later)
    differing = {
        *(field.name for field in table.schema if field not in schema),
        *(field.name for field in schema if field not in table.schema),
    }
    if differing:
        raise ValueError(", ".join(sorted(differing)))
    return table.select(schema.names).cast(schema)


def with_later_columns(table: pa.Table, later: Sequence[Column]) -> pa.Table:
    """Add the later columns that a table lacks, with the values that `Column` defines for older rows."""
    for column in later:
        if column.name not in table.schema.names:
            type_ = _TYPES[column.type]
            older = (
                pa.nulls(len(table), type_)
                if column.older is None
                else pa.repeat(pa.scalar(column.older, type_), len(table))
            )
            table = table.append_column(column.name, table.column(column.older_as) if column.older_as else older)
    return table


def configuration(space: Mapping[str, Domain]) -> list[pa.Field]:
    """Return the columns that contain a trajectory's configuration, searched fields and seed."""
    return [field for each in (*CONFIGURATION, SEED, SEARCHED) for field in _fields_of(each, space)]


def column(name: str) -> str:
    """Return the name of the column for the searched field `name`.

    Most columns have the same name as their field. The columns of some fields of ``pruning`` have a shorter name: the
    column of ``pruning.pruning_rate`` is ``pruning_rate``.
    """
    short = dotted(name).removeprefix("pruning.")
    return short if short in _COLUMNS_OF_THEIR_OWN else name


def is_json(field: pa.Field) -> bool:
    """Return whether a column contains JSON text.

    It contains JSON if the field's values are lists or have incompatible types.
    """
    return bool(field.metadata and field.metadata.get(_ENCODING) == b"json")


def encode(field: pa.Field, value: Any) -> Any:
    """Convert a value to the form that its column stores; None stays None."""
    return json.dumps(value, sort_keys=True) if is_json(field) and value is not None else value


def decode(field: pa.Field, value: Any) -> Any:
    """Convert a stored value back; the inverse of `encode`."""
    return json.loads(value) if is_json(field) and value is not None else value


def check_version(schema: pa.Schema, path: object) -> None:
    """Check that this version of the package can read a table.

    Raises:
        RunDirectoryError: the schema has no version, or its version is newer than `SCHEMA_VERSION`.
    """
    version = (schema.metadata or {}).get(_VERSION)
    if version is None:
        raise RunDirectoryError(f"{path} is not a table of ticket_search: its metadata has no schema version")
    if int(version) > SCHEMA_VERSION:
        raise RunDirectoryError(
            f"{path} has schema version {int(version)}, but this ticket_search reads at most {SCHEMA_VERSION}; upgrade "
            "ticket_search"
        )


def _fields_of(column_: Column, space: Mapping[str, Domain]) -> list[pa.Field]:
    if column_ is not SEARCHED:
        return [pa.field(column_.name, _TYPES[column_.type])]
    return [_field(name, domain) for name, domain in space.items() if column(name) not in _COLUMNS_OF_THEIR_OWN]


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
