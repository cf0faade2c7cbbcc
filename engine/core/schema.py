"""The settled types of a collection's fields, and how new fields join them.

A schema only grows: a field keeps the type that it got first, so that no file is written with another type
than the files before it. It is kept in the state store, one version after the other, and named in each file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Literal
from unicodedata import normalize

from msgspec import Struct
from msgspec.structs import replace

from engine.core.naming import PARTITION_NAMES

# Names of document fields that begin so have no column: the metadata columns' names do.
RESERVED_PREFIX = "_cdc_"
# What identifies a document has a column under this very name, whatever else there is.
IDENTIFIER = "_id"

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
    """A named field.

    Attributes:
        since: the schema version in which it appeared (0 while it is a proposal).
        column: the name of its column where that is not the field's own; see ``ColumnNames``.
    """

    name: str
    type: DataType
    since: int = 0
    column: str = ""

    @property
    def column_name(self) -> str:
        """What its column is called in the files."""
        return self.column or self.name


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
            one JSON column, and when there is no room for that either, a new field gets none; but for ``_id``.
    """
    growth = _Growth(schema, max_fields)
    fields = growth.fields(schema.fields, proposed, outermost=True)
    if fields == schema.fields:
        return schema
    return CollectionSchema(schema.version + 1, fields)


def all_fit(schema: CollectionSchema, proposed: tuple[Field, ...], max_fields: int) -> bool:
    """Whether ``grow`` would take up all of the proposed fields as they are."""
    growth = _Growth(schema, max_fields)
    growth.fields(schema.fields, proposed, outermost=True)
    return not growth.is_short


def columns_left(fields: Iterable[Field], max_fields: int) -> int:
    """How many leaves a schema with these fields may still grow by."""
    return max(0, max_fields - sum(_leaves(field.type) for field in fields))


class _Growth:
    """One step from a version to the next.

    State:
        room: how many leaves may still come.
        is_short: a proposed field did not get what it asked for.
    """

    def __init__(self, schema: CollectionSchema, max_fields: int) -> None:
        self._version = schema.version + 1
        self._room = columns_left(schema.fields, max_fields)
        self.is_short = False

    def fields(
        self, known: tuple[Field, ...], proposed: tuple[Field, ...], *, outermost: bool = False
    ) -> tuple[Field, ...]:
        by_name = {field.name: field for field in known}
        names: ColumnNames | None = None
        for field in proposed:
            if (old := by_name.get(field.name)) is not None:
                grown = self._type(old.type, field.type)
                if grown is not old.type:
                    by_name[field.name] = replace(old, type=grown)
                continue
            type_ = self._fitting(field.type, most_wanted=outermost and field.name == IDENTIFIER)
            if type_ is not None:
                self._room -= _leaves(type_)
                names = names or ColumnNames(known, outermost=outermost)
                by_name[field.name] = names.new_field(field.name, type_, self._version)
        return tuple(by_name.values())

    def _type(self, known: DataType, proposed: DataType) -> DataType:
        if known.kind == proposed.kind == "struct":
            fields = self.fields(known.fields, proposed.fields)
            return known if fields == known.fields else DataType("struct", fields)
        if known.kind == proposed.kind == "list" and known.item and proposed.item:
            item = self._type(known.item, proposed.item)
            return known if item is known.item else DataType("list", item=item)
        return known

    def _fitting(self, type_: DataType, *, most_wanted: bool) -> DataType | None:
        leaves, room = _leaves(type_), max(self._room, int(most_wanted))
        if leaves <= max(room, 0):
            return type_
        self.is_short = True
        return DataType("json") if leaves > 1 and room > 0 else None


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


# --- names of columns ------------------------------------------------------------------------------------


def folded(name: str) -> str:
    """A key that two names share when any reader could take one for the other.

    DuckDB folds the case of ASCII letters; Spark and Hive lower-case by Unicode's rules, and compare the fields of
    structs character by character, in upper and in lower case. So this folds by all of these, and by Unicode's
    compatibility forms too: a sharp s is ``ss``, and an ``i`` with or without its dot, small or large, is ``i``.
    """
    if name.isascii():
        return name.lower()
    before, key = "", name
    while key != before:
        before, key = key, normalize("NFKC", normalize("NFKD", key).upper().casefold()).replace("i\u0307", "i")
    return key


class ColumnNames:
    """The names that the columns of one level have, and those that new ones get.

    A column has its field's name. Where a reader could take that for the name of a column that is there already,
    a number is put behind it: ``name__2`` beside ``Name``. At the outermost level the same goes for names that
    could be taken for a metadata column, for ``_id``, or for a directory of the lake. A name is given once and
    kept with the schema, so it depends on nothing but the order in which the schema met the fields.
    """

    def __init__(self, known: Iterable[Field], *, outermost: bool = False) -> None:
        self._outermost = outermost
        self._taken = {folded(field.column_name) for field in known if field.type.kind != "drop"}

    def new_field(self, name: str, type_: DataType, since: int) -> Field:
        """A field, and all below it, as new in this version; its column's name is taken from now on."""
        column = "" if type_.kind == "drop" else self._take(name)
        return Field(name, _as_new(type_, since), since, "" if column == name else column)

    def _take(self, name: str) -> str:
        column, key, number = name, folded(name), 1
        while key in self._taken or (number == 1 and self._is_reserved(name, key)):
            number += 1
            column = f"{name}__{number}"
            key = folded(column)
        self._taken.add(key)
        return column

    def _is_reserved(self, name: str, key: str) -> bool:
        if not self._outermost:
            return False
        like_identifier = key == IDENTIFIER and name != IDENTIFIER
        return like_identifier or key in PARTITION_NAMES or key.startswith(RESERVED_PREFIX)


def _as_new(type_: DataType, since: int) -> DataType:
    """The type with all fields below marked as new in a version, and with names for their columns."""
    if type_.kind not in ("struct", "list"):
        return type_
    names = ColumnNames(())
    fields = tuple(names.new_field(field.name, field.type, since) for field in type_.fields)
    return DataType(type_.kind, fields, _as_new(type_.item, since) if type_.item else None)
