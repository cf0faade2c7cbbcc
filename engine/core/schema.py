"""The settled types of a collection's fields, and how new fields join them.

A schema only grows: a field keeps the type that it got first, so that no file is written with another type
than the files before it. It is kept in the state store, one version after the other, and named in each file.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Kind = Literal[
    "float64",
    "int64",
    "int32",
    "bool",
    "string",
    "timestamp",  # milliseconds, UTC
    "object_id",  # 24 hex digits
    "object_id_binary",  # 12 bytes
    "decimal",  # as a string
    "binary",
    "uuid",  # as a string
    "json",  # relaxed Extended JSON
    "struct",
    "list",
]


class DataType(Struct, frozen=True, omit_defaults=True):
    """The type of a field.

    Attributes:
        fields: of a struct, in the order in which they were met.
        item: of a list.
        subtype: of a binary.
    """

    kind: Kind
    fields: tuple[Field, ...] = ()
    item: DataType | None = None
    subtype: int = 0


class Field(Struct, frozen=True, omit_defaults=True):
    """A named field; ``since`` is the schema version in which it appeared (0 while it is a proposal)."""

    name: str
    type: DataType
    since: int = 0


class CollectionSchema(Struct, frozen=True, omit_defaults=True):
    """All fields of a collection's documents; version 0 has none."""

    version: int = 0
    fields: tuple[Field, ...] = ()


def grow(schema: CollectionSchema, proposed: tuple[Field, ...]) -> CollectionSchema:
    """``schema`` with the proposed fields that it lacks; the same object when it lacks none.

    What it has stays as it is: a proposal of another type for a known field changes nothing.
    """
    fields = _grow_fields(schema.fields, proposed, schema.version + 1)
    if fields == schema.fields:
        return schema
    return CollectionSchema(schema.version + 1, fields)


def _grow_fields(known: tuple[Field, ...], proposed: tuple[Field, ...], version: int) -> tuple[Field, ...]:
    by_name = {field.name: field for field in known}
    for field in proposed:
        if (old := by_name.get(field.name)) is None:
            by_name[field.name] = Field(field.name, _stamped(field.type, version), version)
        else:
            grown = _grow_type(old.type, field.type, version)
            if grown != old.type:
                by_name[field.name] = Field(field.name, grown, old.since)
    return tuple(by_name.values())


def _grow_type(known: DataType, proposed: DataType, version: int) -> DataType:
    if known.kind == proposed.kind == "struct":
        return DataType("struct", _grow_fields(known.fields, proposed.fields, version))
    if known.kind == proposed.kind == "list" and known.item and proposed.item:
        return DataType("list", item=_grow_type(known.item, proposed.item, version))
    return known


def _stamped(type_: DataType, version: int) -> DataType:
    """The type with all fields below marked as new in ``version``."""
    fields = tuple(Field(field.name, _stamped(field.type, version), version) for field in type_.fields)
    return DataType(type_.kind, fields, _stamped(type_.item, version) if type_.item else None, type_.subtype)
