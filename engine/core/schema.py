"""The settled types of a collection's fields, and how new fields join them.

A schema only grows: a field keeps the type that it got first, so that no file is written with another type
than the files before it. It is kept in the state store, one version after the other, and named in each file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
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
    "decimal",  # Decimal128 as a string
    "decimal128",  # with a precision and a scale
    "binary",
    "uuid",  # as a string
    "json",  # relaxed Extended JSON
    "struct",
    "list",
    "drop",  # has no column: the user wants none of it
]


class DataType(Struct, frozen=True, omit_defaults=True):
    """The type of a field.

    Attributes:
        fields: of a struct, in the order in which they were met.
        item: of a list.
        subtype: of a binary.
        precision, scale: of a decimal128.
    """

    kind: Kind
    fields: tuple[Field, ...] = ()
    item: DataType | None = None
    subtype: int = 0
    precision: int = 0
    scale: int = 0


class Field(Struct, frozen=True, omit_defaults=True):
    """A named field; ``since`` is the schema version in which it appeared (0 while it is a proposal)."""

    name: str
    type: DataType
    since: int = 0


class CollectionSchema(Struct, frozen=True, omit_defaults=True):
    """All fields of a collection's documents; version 0 has none."""

    version: int = 0
    fields: tuple[Field, ...] = ()


_NAMES: dict[str, Kind] = {
    "double": "float64",
    "float64": "float64",
    "int64": "int64",
    "int32": "int32",
    "bool": "bool",
    "string": "string",
    "timestamp": "timestamp",
    "timestamp[ms, UTC]": "timestamp",
    "object_id": "object_id",
    "fixed_size_binary[12]": "object_id_binary",
    "decimal": "decimal",
    "binary": "binary",
    "uuid": "uuid",
    "json": "json",
    "drop": "drop",
}
_DECIMAL = re.compile(r"decimal128\((\d+), *(\d+)\)")
_LIST = re.compile(r"list<(.+)>")


def parse_type(text: str) -> DataType:
    """The type that an override names.

    Raises:
        ValueError: there is none of that name.
    """
    if (match := _DECIMAL.fullmatch(text)) is not None:
        precision, scale = int(match[1]), int(match[2])
        if 1 <= precision <= 38 and scale <= precision:
            return DataType("decimal128", precision=precision, scale=scale)
    if (match := _LIST.fullmatch(text)) is not None and match[1] != "drop":
        return DataType("list", item=parse_type(match[1]))
    if text not in _NAMES:
        names = ", ".join([*_NAMES, "decimal128(P, S) with S <= P <= 38"])
        raise ValueError(f"{text!r} is no type; there are {names}, and list<...> of these")
    return DataType(_NAMES[text])


_NO_NAME = "\\0"


def path_of(parent: str, name: str) -> str:
    r"""The dotted path of a field; a dot or backslash in a name is escaped by a backslash, no name is ``\0``."""
    if "\\" in name or "." in name:
        name = name.replace("\\", "\\\\").replace(".", "\\.")
    return f"{parent}.{name or _NO_NAME}" if parent else name or _NO_NAME


def types_by_path(fields: tuple[Field, ...], parent: str = "") -> Iterator[tuple[str, DataType]]:
    """Every field's dotted path and type; those inside arrays under the array's path."""
    for field in fields:
        path, type_ = path_of(parent, field.name), field.type
        yield path, type_
        while type_.kind == "list" and type_.item is not None:
            type_ = type_.item
        yield from types_by_path(type_.fields, path)


def grow(schema: CollectionSchema, proposed: tuple[Field, ...], max_fields: int) -> CollectionSchema:
    """``schema`` with the proposed fields that it lacks; the same object when it lacks none.

    What it has stays as it is: a proposal of another type for a known field changes nothing.

    Args:
        max_fields: columns, counted at the leaves, that a schema may grow to. Past it a new sub-document becomes
            one JSON column, and when there is no room for that either, a new field gets none.
    """
    growth = _Growth(schema.version + 1, max_fields - sum(_leaves(field.type) for field in schema.fields))
    fields = growth.fields(schema.fields, proposed)
    if fields == schema.fields:
        return schema
    return CollectionSchema(schema.version + 1, fields)


class _Growth:
    """One step from a version to the next; ``room`` is how many leaves may still come."""

    def __init__(self, version: int, room: int) -> None:
        self._version = version
        self._room = room

    def fields(self, known: tuple[Field, ...], proposed: tuple[Field, ...]) -> tuple[Field, ...]:
        by_name = {field.name: field for field in known}
        for field in proposed:
            if (old := by_name.get(field.name)) is not None:
                grown = self._type(old.type, field.type)
                if grown is not old.type:
                    by_name[field.name] = Field(field.name, grown, old.since)
            elif (type_ := self._fitting(field.type)) is not None:
                self._room -= _leaves(type_)
                by_name[field.name] = Field(field.name, _stamped(type_, self._version), self._version)
        return tuple(by_name.values())

    def _type(self, known: DataType, proposed: DataType) -> DataType:
        if known.kind == proposed.kind == "struct":
            fields = self.fields(known.fields, proposed.fields)
            return known if fields == known.fields else DataType("struct", fields)
        if known.kind == proposed.kind == "list" and known.item and proposed.item:
            item = self._type(known.item, proposed.item)
            return known if item is known.item else DataType("list", item=item)
        return known

    def _fitting(self, type_: DataType) -> DataType | None:
        leaves = _leaves(type_)
        if leaves <= max(self._room, 0):
            return type_
        return DataType("json") if leaves > 1 and self._room > 0 else None


def _leaves(type_: DataType) -> int:
    """How many columns a type makes in a file."""
    match type_.kind:
        case "struct":
            return sum(_leaves(field.type) for field in type_.fields)
        case "list":
            return _leaves(type_.item) if type_.item else 0
        case "drop":
            return 0
        case _:
            return 1


def _stamped(type_: DataType, version: int) -> DataType:
    """The type with all fields below marked as new in ``version``."""
    if type_.kind not in ("struct", "list"):
        return type_
    fields = tuple(Field(field.name, _stamped(field.type, version), version) for field in type_.fields)
    return DataType(type_.kind, fields, _stamped(type_.item, version) if type_.item else None)
