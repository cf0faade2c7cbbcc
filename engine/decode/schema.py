"""From observed values to the types of fields, and from those to Arrow.

Values are counted (``Observed``) by both the vector of cursors and the row-by-row decoder; ``Settler`` turns the
counts into field types by one rule. The result is a proposal: the first one in the state store wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import pyarrow as pa
from msgspec import Struct

from engine.config.tree import SchemaConfig
from engine.core.schema import (
    IDENTIFIER,
    RESERVED_PREFIX,
    CollectionSchema,
    DataType,
    Field,
    Kind,
    all_fit,
    grow,
    parse_type,
    path_of,
)
from engine.rawbson import elements as raw

MILLISECONDS = pa.timestamp("ms", tz="UTC")

METADATA_COLUMNS: dict[str, pa.DataType] = {
    "_cdc_op": pa.string(),
    "_cdc_token": pa.string(),
    "_cdc_cluster_time": MILLISECONDS,
    "_cdc_wall_time": MILLISECONDS,
    "_cdc_database": pa.string(),
    "_cdc_collection": pa.string(),
    "_cdc_timestamp": pa.int64(),
    "_cdc_stream": pa.string(),
    "_cdc_seq": pa.int64(),
    "_cdc_key": pa.string(),
    "_cdc_id": pa.string(),
    "_cdc_has_document": pa.bool_(),
    "_cdc_update": pa.string(),
    "_cdc_before": pa.string(),
    "_cdc_txn": pa.string(),
    "_cdc_extra": pa.string(),
    "_cdc_rescued": pa.string(),
    "_cdc_raw": pa.binary(),
}
RAW_COLUMN = "_cdc_raw"
# In the metadata of an Arrow field: the name of the document's field.
NAME_KEY = "bson.name"
# The kind of its type, and the subtype of a binary.
KIND_KEY, SUBTYPE_KEY = "bson.type", "bson.subtype"
# The most milliseconds before or after 1970 that a column can hold (the years -290308 to 294247). DuckDB and Spark
# read timestamps as microseconds in an int64, and every query of a column with a value beyond that fails.
MAX_MS = (2**63 - 1) // 1000

Family = Literal[
    "number", "string", "bool", "date", "object_id", "decimal", "binary", "document", "array", "other"
]
_FAMILIES: dict[int, Family] = {
    raw.DOUBLE: "number",
    raw.INT32: "number",
    raw.INT64: "number",
    raw.STRING: "string",
    raw.BOOL: "bool",
    raw.DATE: "date",
    raw.OBJECT_ID: "object_id",
    raw.DECIMAL128: "decimal",
    raw.BINARY: "binary",
    raw.DOCUMENT: "document",
    raw.ARRAY: "array",
}
_SCALARS: dict[Family, Kind] = {
    "string": "string",
    "bool": "bool",
    "date": "timestamp",
    "object_id": "object_id",
    "decimal": "decimal",
    "other": "json",
}


class SchemaOptions(Struct, frozen=True):
    """How types are settled; see ``[schema]`` in the configuration.

    Attributes:
        max_depth: levels of documents, including the outermost; an array counts only inside another array.
        columns: False if documents are to land as raw bytes only.
        overrides: types by ``<collection>.<dotted path>``.
    """

    max_depth: int = 4
    max_fields: int = 1000
    integers: Literal["widen", "exact"] = "widen"
    object_id: Literal["string", "binary"] = "string"
    on_mismatch: Literal["rescue", "fail"] = "rescue"
    raw: bool = False
    columns: bool = True
    overrides: dict[str, DataType] = {}

    @classmethod
    def of(cls, config: SchemaConfig, *, columns: bool = True) -> SchemaOptions:
        """The options in the configuration."""
        return cls(
            config.max_depth,
            config.max_fields,
            config.integers,
            config.object_id,
            config.on_mismatch,
            config.raw or not columns,
            columns,
            {key: parse_type(text) for key, text in config.overrides.items()},
        )

    def overridden(self, collection: str) -> dict[str, DataType]:
        """The overrides of one collection, by path."""
        prefix = f"{collection}."
        return {key[len(prefix) :]: type_ for key, type_ in self.overrides.items() if key.startswith(prefix)}


class Observed:
    """Counts of the values of one field: by BSON type, and inside documents and arrays.

    Attributes:
        crowded: the documents have more names than a schema may have columns.
    """

    __slots__ = ("counts", "crowded", "fields", "item", "subtypes")

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.subtypes: dict[int, int] = {}
        self.fields: dict[str, Observed] = {}
        self.item: Observed | None = None
        self.crowded = False

    def add(self, kind: int, times: int = 1) -> None:
        """Count ``times`` values of a type."""
        self.counts[kind] = self.counts.get(kind, 0) + times

    def add_binaries(self, subtypes: Mapping[int, int]) -> None:
        """Count binaries, given by subtype."""
        for subtype, times in subtypes.items():
            self.subtypes[subtype] = self.subtypes.get(subtype, 0) + times
            self.add(raw.BINARY, times)

    def field(self, name: str) -> Observed:
        """The counts of a field of the documents in this field."""
        return self.fields.setdefault(name, Observed())

    def elements(self) -> Observed:
        """The counts of the elements of the arrays in this field."""
        if self.item is None:
            self.item = Observed()
        return self.item


class Settler:
    """Proposes types for the values of one collection."""

    def __init__(self, options: SchemaOptions, collection: str) -> None:
        self._options = options
        self._overrides = options.overridden(collection)

    def proposal(self, observed: Mapping[str, Observed], schema: CollectionSchema) -> tuple[Field, ...]:
        """The fields to add to the schema by these counts; none if it has all that it can have.

        They are in the order in which they were first seen. If not all of them fit, ``_id`` comes first, followed
        by those that most documents have.
        """
        fields, max_fields = self.settle(observed), self._options.max_fields
        if grow(schema, fields, max_fields) is schema:
            return ()
        return fields if all_fit(schema, fields, max_fields) else self.settle(_often_first(observed))

    def settle(self, observed: Mapping[str, Observed]) -> tuple[Field, ...]:
        """The fields whose type is overridden or follows from these counts.

        The type of most values wins. A field with only nulls, empty documents or empty arrays has no type yet and
        is left out, as is one with an empty or reserved name.
        """
        return self._fields({k: v for k, v in observed.items() if not k.startswith(RESERVED_PREFIX)}, "", 1)

    def _fields(self, observed: Mapping[str, Observed], path: str, depth: int) -> tuple[Field, ...]:
        fields = []
        for name, seen in observed.items():
            at = path_of(path, name)
            if name and (type_ := self._overrides.get(at) or self._type(seen, at, depth)) is not None:
                fields.append(Field(name, type_))
        return tuple(fields)

    def _type(self, seen: Observed, path: str, depth: int, *, in_array: bool = False) -> DataType | None:
        families: dict[Family, int] = {}
        for kind, times in seen.counts.items():
            if kind not in raw.NOTHING:
                family = _FAMILIES.get(kind, "other")
                families[family] = families.get(family, 0) + times
        if not families:
            return None
        family = max(families, key=lambda each: families[each])
        match family:
            case "number":
                return self._number(seen)
            case "binary":
                subtype = max(seen.subtypes, key=lambda each: seen.subtypes[each])
                return DataType("uuid") if subtype == raw.UUID else DataType("binary", subtype=subtype)
            case "object_id" if self._options.object_id == "binary":
                return DataType("object_id_binary")
            case "document":
                if depth >= self._options.max_depth or seen.crowded:
                    return DataType("json")
                fields = self._fields(seen.fields, path, depth + 1)
                return DataType("struct", fields) if any(each.type.kind != "drop" for each in fields) else None
            case "array":
                return self._array(seen.elements(), path, depth, in_array)
            case _:
                return DataType(_SCALARS[family])

    def _number(self, seen: Observed) -> DataType:
        if raw.DOUBLE in seen.counts:
            return DataType("float64")
        return DataType("int32" if self._options.integers == "exact" and raw.INT64 not in seen.counts else "int64")

    def _array(self, elements: Observed, path: str, depth: int, in_array: bool) -> DataType | None:
        """A list if the elements share a type, otherwise JSON; None while there are no elements."""
        families = {_FAMILIES.get(kind, "other") for kind in elements.counts if kind not in raw.NOTHING}
        if not families:
            return None
        too_deep = in_array and depth >= self._options.max_depth
        if len(families) > 1 or len(elements.subtypes) > 1 or too_deep:
            return DataType("json")
        item = self._type(elements, path, depth + in_array, in_array=True)
        return DataType("list", item=item) if item else None


def _often_first(observed: Mapping[str, Observed]) -> dict[str, Observed]:
    """``_id``, then the others by the number of documents with a value."""

    def rank(name: str) -> tuple[bool, int]:
        return name != IDENTIFIER, -sum(n for kind, n in observed[name].counts.items() if kind not in raw.NOTHING)

    return {name: observed[name] for name in sorted(observed, key=rank)}


def arrow_type(type_: DataType) -> pa.DataType:
    """The Arrow type of a field."""
    match type_.kind:
        case "struct":
            return pa.struct([arrow_field(field) for field in type_.fields if field.type.kind != "drop"])
        case "list":
            assert type_.item is not None
            return pa.list_(pa.field("element", arrow_type(type_.item), metadata=_metadata(type_.item)))
        case "decimal128":
            return pa.decimal128(type_.precision, type_.scale)
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
    """A field with its type; the metadata has its own name, if the column's differs, and a binary's subtype."""
    metadata = _metadata(field.type)
    if field.column:
        metadata[NAME_KEY] = field.name
    return pa.field(field.column_name, arrow_type(field.type), metadata=metadata)


def _metadata(type_: DataType) -> dict[str, str]:
    """What the Arrow type of a field, or of an array's elements, does not say of its BSON type."""
    return {KIND_KEY: type_.kind} | ({SUBTYPE_KEY: str(type_.subtype)} if type_.kind == "binary" else {})


def arrow_schema(schema: CollectionSchema, *, raw: bool = False) -> pa.Schema:
    """All columns of a collection's objects: the metadata columns, then the document's fields.

    Args:
        raw: whether ``_cdc_raw`` is among them.
    """
    metadata = [pa.field(name, type_) for name, type_ in METADATA_COLUMNS.items() if raw or name != RAW_COLUMN]
    return pa.schema(metadata + [arrow_field(field) for field in schema.fields if field.type.kind != "drop"])
