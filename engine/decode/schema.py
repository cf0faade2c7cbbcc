"""From the values that were seen to the types of fields, and from those to Arrow.

What was seen is counted (``Observed``), by the vector of cursors and by the row-by-row way alike; ``settle``
turns the counts into field types by one rule. The result is a proposal: the state store keeps what came first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import pyarrow as pa
from msgspec import Struct

from engine.core.schema import CollectionSchema, DataType, Field, Kind
from engine.decode import cursor
from engine.decode.columns import MILLISECONDS

RESERVED_PREFIX = "_cdc_"

METADATA_COLUMNS: dict[str, pa.DataType] = {
    "_cdc_op": pa.string(),
    "_cdc_token": pa.string(),
    "_cdc_cluster_time": MILLISECONDS,
    "_cdc_wall_time": MILLISECONDS,
    "_cdc_database": pa.string(),
    "_cdc_collection": pa.string(),
    "_cdc_key": pa.string(),
    "_cdc_update": pa.string(),
    "_cdc_before": pa.string(),
    "_cdc_txn": pa.string(),
    "_cdc_extra": pa.string(),
    "_cdc_rescued": pa.string(),
}

Family = Literal[
    "number", "string", "bool", "date", "object_id", "decimal", "binary", "document", "array", "other"
]
_FAMILIES: dict[int, Family] = {
    cursor.DOUBLE: "number",
    cursor.INT32: "number",
    cursor.INT64: "number",
    cursor.STRING: "string",
    cursor.BOOL: "bool",
    cursor.DATE: "date",
    cursor.OBJECT_ID: "object_id",
    cursor.DECIMAL128: "decimal",
    cursor.BINARY: "binary",
    cursor.DOCUMENT: "document",
    cursor.ARRAY: "array",
}
_SCALARS: dict[Family, Kind] = {
    "string": "string",
    "bool": "bool",
    "date": "timestamp",
    "object_id": "object_id",
    "decimal": "decimal",
    "other": "json",
}
_NOTHING = {cursor.NULL, cursor.UNDEFINED}
_UUID_SUBTYPE = 4


class SchemaOptions(Struct, frozen=True):
    """How types are settled; see ``[schema]`` in the configuration."""

    max_depth: int = 4


class Observed:
    """Counts of the values of one field: by BSON type, and what lay inside documents and arrays."""

    __slots__ = ("counts", "fields", "item", "subtypes")

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.subtypes: dict[int, int] = {}
        self.fields: dict[str, Observed] = {}
        self.item: Observed | None = None

    def add(self, kind: int, times: int = 1) -> None:
        """``times`` values of a type."""
        self.counts[kind] = self.counts.get(kind, 0) + times

    def add_binaries(self, subtypes: Mapping[int, int]) -> None:
        """Binaries by subtype."""
        for subtype, times in subtypes.items():
            self.subtypes[subtype] = self.subtypes.get(subtype, 0) + times
            self.add(cursor.BINARY, times)

    def field(self, name: str) -> Observed:
        """What was seen of a field of the documents in this one."""
        return self.fields.setdefault(name, Observed())

    def elements(self) -> Observed:
        """What was seen of the elements of the arrays in this one."""
        if self.item is None:
            self.item = Observed()
        return self.item


def settle(observed: Mapping[str, Observed], options: SchemaOptions, depth: int = 1) -> tuple[Field, ...]:
    """The fields whose type these counts tell.

    The type that most values have wins. A field with nothing but nulls, empty documents or empty arrays has
    no type yet and is left out.
    """
    fields = []
    for name, seen in observed.items():
        if depth == 1 and name.startswith(RESERVED_PREFIX):
            continue
        if (type_ := _settle_type(seen, options, depth)) is not None:
            fields.append(Field(name, type_))
    return tuple(fields)


def _settle_type(seen: Observed, options: SchemaOptions, depth: int) -> DataType | None:
    families: dict[Family, int] = {}
    for kind, times in seen.counts.items():
        if kind not in _NOTHING:
            family = _FAMILIES.get(kind, "other")
            families[family] = families.get(family, 0) + times
    if not families:
        return None
    family = max(families, key=lambda each: families[each])
    match family:
        case "number":
            return DataType("float64" if cursor.DOUBLE in seen.counts else "int64")
        case "binary":
            subtype = max(seen.subtypes, key=lambda each: seen.subtypes[each])
            return DataType("uuid") if subtype == _UUID_SUBTYPE else DataType("binary", subtype=subtype)
        case "document":
            if depth >= options.max_depth:
                return DataType("json")
            fields = settle(seen.fields, options, depth + 1)
            return DataType("struct", fields) if fields else None
        case "array":
            return _settle_array(seen.elements(), options, depth)
        case _:
            return DataType(_SCALARS[family])


def _settle_array(elements: Observed, options: SchemaOptions, depth: int) -> DataType | None:
    """A list when the elements share a type, else JSON; None while there are no elements."""
    families = {_FAMILIES.get(kind, "other") for kind in elements.counts if kind not in _NOTHING}
    if not families:
        return None
    if len(families) > 1 or len(elements.subtypes) > 1 or depth >= options.max_depth:
        return DataType("json")
    item = _settle_type(elements, options, depth + 1)
    return DataType("list", item=item) if item else None


def arrow_type(type_: DataType) -> pa.DataType:
    """The Arrow type of a field."""
    match type_.kind:
        case "struct":
            return pa.struct([arrow_field(field) for field in type_.fields])
        case "list":
            assert type_.item is not None
            return pa.list_(pa.field("element", arrow_type(type_.item)))
        case _:
            return _ARROW[type_.kind]


_ARROW: dict[Kind, pa.DataType] = {
    "float64": pa.float64(),
    "int64": pa.int64(),
    "int32": pa.int32(),
    "bool": pa.bool_(),
    "string": pa.string(),
    "timestamp": MILLISECONDS,
    "object_id": pa.string(),
    "object_id_binary": pa.binary(12),
    "decimal": pa.string(),
    "binary": pa.binary(),
    "uuid": pa.string(),
    "json": pa.string(),
}


def arrow_field(field: Field) -> pa.Field:
    """A field with its type; a binary's subtype is in the field's metadata."""
    metadata: dict[str, str] = {"bson.type": field.type.kind}
    if field.type.kind == "binary":
        metadata["bson.subtype"] = str(field.type.subtype)
    return pa.field(field.name, arrow_type(field.type), metadata=metadata)


def arrow_schema(schema: CollectionSchema) -> pa.Schema:
    """All columns of a collection's objects: the metadata columns, then the document's fields."""
    metadata = [pa.field(name, type_) for name, type_ in METADATA_COLUMNS.items()]
    return pa.schema(metadata + [arrow_field(field) for field in schema.fields])
