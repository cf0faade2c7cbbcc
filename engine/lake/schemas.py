"""A collection's schema from the Arrow schema of a file, for files whose footer does not hold it.

Files of version 0.2 and before do not say the types of arrays' elements exactly: an array of ObjectIds then counts
as one of strings, as which it is stored. The columns' types are the same.
"""

from __future__ import annotations

import pyarrow as pa

from engine.core.schema import CollectionSchema, DataType, Field, Kind
from engine.decode.schema import KIND_KEY, METADATA_COLUMNS, NAME_KEY, SUBTYPE_KEY

_KINDS: tuple[tuple[pa.DataType, Kind], ...] = (
    (pa.float64(), "float64"),
    (pa.int64(), "int64"),
    (pa.int32(), "int32"),
    (pa.bool_(), "bool"),
    (pa.string(), "string"),
    (pa.timestamp("ms", "UTC"), "timestamp"),
    (pa.binary(12), "object_id_binary"),
    (pa.binary(), "binary"),
)


def schema_of(columns: pa.Schema, version: int) -> CollectionSchema:
    """The schema of this version, as far as the columns tell it.

    Raises:
        ValueError: a column has a type that no schema has.
    """
    own = (column for column in columns if column.name not in METADATA_COLUMNS)
    return CollectionSchema(version, tuple(_field(column, version) for column in own))


def _field(column: pa.Field, version: int) -> Field:
    name = (column.metadata or {}).get(NAME_KEY.encode(), column.name.encode()).decode()
    return Field(name, _type(column, version), version, "" if name == column.name else column.name)


def _type(column: pa.Field, version: int) -> DataType:
    said = {name.decode(): value.decode() for name, value in (column.metadata or {}).items()}
    type_ = column.type
    if pa.types.is_struct(type_):
        return DataType("struct", tuple(_field(each, version) for each in type_))
    if pa.types.is_list(type_):
        return DataType("list", item=_type(type_.value_field, version))
    if pa.types.is_decimal(type_):
        return DataType("decimal128", precision=type_.precision, scale=type_.scale)
    kind = next((kind for each, kind in _KINDS if each == type_), None)
    if kind is None:
        raise ValueError(f"the column {column.name} has the type {type_}")
    return DataType(said.get(KIND_KEY, kind), subtype=int(said.get(SUBTYPE_KEY, "0")))
