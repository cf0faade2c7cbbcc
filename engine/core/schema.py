"""The settled types of a collection's fields, and how new fields are added.

A schema only grows: a field keeps the type that it got first, so that no file has another type than the files
before it. It is stored in the state store, version by version, and each file names its version.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Literal
from unicodedata import normalize

from msgspec import Struct
from msgspec.structs import replace

from engine.core.naming import PARTITION_NAMES

# Document fields whose names start with this have no column: the metadata columns' names do.
RESERVED_PREFIX = "_cdc_"
# The field that identifies a document always has a column of exactly this name.
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
    "drop",  # has no column, by configuration
]


class DataType(Struct, frozen=True, omit_defaults=True):
    """The type of a field.

    Attributes:
        fields: those of a struct, in the order in which they were first seen.
        item: that of a list.
        subtype: that of a binary.
        precision, scale: those of a decimal128.
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
        since: the schema version in which it appeared (0 while it is proposed).
        column: the name of its column if that is not the field's own; see ``ColumnNames``.
    """

    name: str
    type: DataType
    since: int = 0
    column: str = ""

    @property
    def column_name(self) -> str:
        """The name of its column in the files."""
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
        ValueError: there is no such type.
    """
    if (match := _DECIMAL.fullmatch(text)) is not None:
        precision, scale = int(match[1]), int(match[2])
        if 1 <= precision <= 38 and scale <= precision:
            return DataType("decimal128", precision=precision, scale=scale)
    if (match := _LIST.fullmatch(text)) is not None and match[1] != "drop":
        return DataType("list", item=parse_type(match[1]))
    if text not in _NAMES:
        names = ", ".join([*_NAMES, "decimal128(P, S) with S <= P <= 38"])
        raise ValueError(f"{text!r} is not a type; use one of {names}, or list<...> of these")
    return DataType(_NAMES[text])


_NO_NAME = "\\0"


def path_of(parent: str, name: str) -> str:
    r"""The dotted path of a field; a backslash escapes a dot or backslash in a name, an empty name is ``\0``."""
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


def grow(
    schema: CollectionSchema, proposed: tuple[Field, ...], max_fields: int, *, plain: bool = False
) -> CollectionSchema:
    """``schema`` with the proposed fields that it lacks; the same object if it lacks none.

    Existing fields stay as they are: proposing another type for a known field changes nothing.

    Args:
        max_fields: the number of columns, counted at the leaves, that a schema may grow to. A new sub-document
            that would exceed it becomes one JSON column; if even that would, a new field gets none, except
            ``_id``.
        plain: new columns get names that table formats take, see ``ColumnNames``.
    """
    growth = _Growth(schema, max_fields, plain=plain)
    fields = growth.fields(schema.fields, proposed, outermost=True)
    if fields == schema.fields:
        return schema
    return CollectionSchema(schema.version + 1, fields)


def all_fit(schema: CollectionSchema, proposed: tuple[Field, ...], max_fields: int) -> bool:
    """Whether ``grow`` would add all of the proposed fields unchanged."""
    growth = _Growth(schema, max_fields)
    growth.fields(schema.fields, proposed, outermost=True)
    return not growth.has_overflowed


def columns_left(fields: Iterable[Field], max_fields: int) -> int:
    """How many more columns a schema with these fields may grow by."""
    return max(0, max_fields - sum(_leaves(field.type) for field in fields))


class _Growth:
    """One step from a version to the next.

    State:
        columns_left: how many leaves may still be added.
        has_overflowed: a proposed field did not get the type that it was proposed with.
    """

    def __init__(self, schema: CollectionSchema, max_fields: int, *, plain: bool = False) -> None:
        self._plain = plain
        self._version = schema.version + 1
        self._columns_left = columns_left(schema.fields, max_fields)
        self.has_overflowed = False

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
            type_ = self._fitting(field.type, required=outermost and field.name == IDENTIFIER)
            if type_ is not None:
                self._columns_left -= _leaves(type_)
                names = names or ColumnNames(known, outermost=outermost, plain=self._plain)
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

    def _fitting(self, type_: DataType, *, required: bool) -> DataType | None:
        leaves, left = _leaves(type_), max(self._columns_left, int(required))
        if leaves <= max(left, 0):
            return type_
        self.has_overflowed = True
        return DataType("json") if leaves > 1 and left > 0 else None


def _leaves(type_: DataType) -> int:
    """The number of columns that a type has in a file."""
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
    """A key that two names share if any query engine could mistake one for the other.

    DuckDB folds the case of ASCII letters; Spark and Hive lower-case by Unicode's rules, and compare the fields of
    structs character by character, in upper and in lower case. So this folds by all of these rules, and by
    Unicode's compatibility forms as well: a sharp s is ``ss``, and an ``i`` with or without dot, in either case,
    is ``i``.
    """
    if name.isascii():
        return name.lower()
    before, key = "", name
    while key != before:
        before, key = key, normalize("NFKC", normalize("NFKD", key).upper().casefold()).replace("i\u0307", "i")
    return key


_NOT_PLAIN = re.compile(r"[.\s,;{}()=]")


class ColumnNames:
    """The names of the existing columns of one level, and those that new ones get.

    A column has its field's name. If a query engine could mistake that for the name of an existing column, a
    number is appended: ``name__2`` beside ``Name``. The same applies at the outermost level to names that could be
    mistaken for a metadata column, for ``_id``, or for a directory of the lake. A name is assigned once and kept
    with the schema, so it depends only on the order in which the schema got its fields.

    Args:
        plain: characters that a table format or its readers cannot take become ``_``: a dot, which separates the
            names of a path, and the punctuation and white space that Delta does not allow.
    """

    def __init__(self, known: Iterable[Field], *, outermost: bool = False, plain: bool = False) -> None:
        self._outermost = outermost
        self._plain = plain
        self._taken = {folded(field.column_name) for field in known if field.type.kind != "drop"}

    def new_field(self, name: str, type_: DataType, since: int) -> Field:
        """A field, and all below it, marked as new in this version; its column's name is taken from now on."""
        column = "" if type_.kind == "drop" else self._take(name)
        return Field(name, _as_new(type_, since, self._plain), since, "" if column == name else column)

    def _take(self, name: str) -> str:
        base = _NOT_PLAIN.sub("_", name) or "_" if self._plain else name
        column, key, number = base, folded(base), 1
        while key in self._taken or (number == 1 and self._is_reserved(base, key)):
            number += 1
            column = f"{base}__{number}"
            key = folded(column)
        self._taken.add(key)
        return column

    def _is_reserved(self, name: str, key: str) -> bool:
        if not self._outermost:
            return False
        like_identifier = key == IDENTIFIER and name != IDENTIFIER
        return like_identifier or key in PARTITION_NAMES or key.startswith(RESERVED_PREFIX)


def _as_new(type_: DataType, since: int, plain: bool) -> DataType:
    """The type with all fields below it marked as new in a version, and with names for their columns."""
    if type_.kind not in ("struct", "list"):
        return type_
    names = ColumnNames((), plain=plain)
    fields = tuple(names.new_field(field.name, field.type, since) for field in type_.fields)
    return DataType(type_.kind, fields, _as_new(type_.item, since, plain) if type_.item else None)
