"""Rows of the lake back to documents: the inverse of the columns that configs/LAKE.md describes.

It takes what the files say (the columns, and the metadata of their fields) and nothing from the decoder that
wrote them. A row that has ``_cdc_raw`` comes back byte for byte. Otherwise, a document has ``_id`` first, then the
fields of the columns in the columns' order, then those that were rescued; and these rules decide what the columns
do not tell (``UNTOLD``):

- a whole number from a column of integers, or without a point in JSON, is an int32 if it fits, else an Int64; all
  numbers of a column of doubles are doubles, and those of a ``decimal128(P, S)`` are Decimal128;
- a field that was null, undefined or absent is absent; such an element of an array is null;
- an ``_id`` that is a number or a document has the type, and the order of fields, that it has in ``_cdc_key``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Inexact, localcontext
from typing import Any
from uuid import UUID

import pyarrow as pa
from bson.codec_options import CodecOptions
from bson.decimal128 import Decimal128, create_decimal128_context
from bson.raw_bson import RawBSONDocument

from engine.lake.documents import elements as el
from engine.lake.documents.elements import KIND_BYTES, Value
from engine.lake.documents.extended_json import members_of, value_of

Values = list[Value | None]
# What a document has besides its columns: by name, values, or what a document inside it has.
_More = dict[bytes, "Value | _More"]

# What a document from the columns may differ in from the one that went into them.
UNTOLD = (
    "the order of fields, at every level, except inside an _id and inside JSON columns",
    "whether a field was null, undefined or absent, and whether an element of an array was null or undefined",
    "whether a number was an int32, an Int64 or a double, if all of them can have its value",
    "in columns of decimal128(P, S): whether a number was a Decimal128, and how many zeros it ended in",
    "fields that schema.overrides or schema.protect drops, and the values that schema.protect hashes or masks",
)

_METADATA_PREFIX = "_cdc_"
_ID = "_id"
_MILLISECONDS = pa.timestamp("ms", tz="UTC")
_RAW: CodecOptions[RawBSONDocument] = CodecOptions(document_class=RawBSONDocument)


def documents(rows: pa.RecordBatch, known: pa.Schema | None = None) -> list[bytes]:
    """The document of each row, as BSON: of a row without its document, what is known of it, its key.

    Args:
        rows: as they are in a Parquet file, with the metadata of the fields.
        known: types for fields (or their elements) that have none in the file, see ``with_types``.

    Raises:
        ValueError: a row does not have what the engine writes.
    """
    raw = _raw_documents(rows)
    if all(each is not None for each in raw):
        return [each for each in raw if each is not None]
    built = _from_columns(rows, known)
    return [row if whole is None else whole for whole, row in zip(raw, built, strict=True)]


def _raw_documents(rows: pa.RecordBatch) -> Sequence[bytes | None]:
    """The documents in ``_cdc_raw``: the one that was read, or that of the event."""
    if "_cdc_raw" not in rows.schema.names:
        return [None] * rows.num_rows
    pairs = zip(rows.column("_cdc_op").to_pylist(), rows.column("_cdc_raw").to_pylist(), strict=True)
    return [raw if op == "read" or raw is None else _full_document(raw) for op, raw in pairs]


def _full_document(event: bytes) -> bytes | None:
    found = RawBSONDocument(event, _RAW).get("fullDocument")
    return bytes(found.raw) if isinstance(found, RawBSONDocument) else None


def _from_columns(rows: pa.RecordBatch, known: pa.Schema | None) -> list[bytes]:
    names = {} if known is None else {field.name: field for field in known}
    parts: list[list[bytes]] = [[] for _ in range(rows.num_rows)]
    ids: Values = [None] * rows.num_rows
    for field, column in zip(rows.schema, rows.columns, strict=True):
        if field.name == _ID:
            ids = _column(column, with_types(field, names.get(_ID)))
        elif not field.name.startswith(_METADATA_PREFIX):
            typed = with_types(field, names.get(field.name))
            _add(parts, _name(typed), _column(column, typed))
    keys, rescued = (_texts(rows, name) for name in ("_cdc_key", "_cdc_rescued"))
    return [
        _document(key, id_, found, members_of(lost) if lost else {})
        for key, id_, found, lost in zip(keys, ids, parts, rescued, strict=True)
    ]


def _texts(rows: pa.RecordBatch, name: str) -> Sequence[str | None]:
    found: list[str | None] = (
        rows.column(name).to_pylist() if name in rows.schema.names else [None] * rows.num_rows
    )
    return found


def _document(key: str | None, id_: Value | None, parts: list[bytes], rescued: dict[str, Value]) -> bytes:
    if "" in rescued:  # a document that has a name twice
        return rescued[""][1]
    identity = rescued.pop(_ID, None) or _exact_id(id_, key)
    if identity is not id_:
        rescued = {path: value for path, value in rescued.items() if not path.startswith(f"{_ID}.")}
    head = [] if identity is None else [el.element(b"_id", identity)]
    document = el.framed(head + parts)
    return _with(document, _by_name(rescued)) if rescued else document


def _exact_id(value: Value | None, key: str | None) -> Value | None:
    """An ``_id`` as ``_cdc_key`` has it, where its column does not tell its type or the order of its fields."""
    told = value is not None and value[0] not in _UNTOLD_IDS
    if told or key is None:
        return value
    members = {name: each for name, each in el.fields(value_of(key)[1]) if name == b"_id"}
    return members.get(b"_id", value)


_UNTOLD_IDS = {el.DOUBLE, el.INT32, el.INT64, el.DECIMAL128, el.DOCUMENT, el.ARRAY}


def _by_name(rescued: Mapping[str, Value]) -> _More:
    """Values by path as values, or more such objects, by name."""
    found: _More = {}
    for path, value in rescued.items():
        *parents, name = _names_in(path)
        place = found
        for parent in parents:
            inner = place.setdefault(parent, {})
            if isinstance(inner, tuple):
                raise ValueError(f"a value was rescued inside another one: {path!r}")
            place = inner
        place[name] = value
    return found


def _with(document: bytes, more: _More) -> bytes:
    """A document with more values; the documents that they are in are there.

    Raises:
        ValueError: they are not.
    """
    added = {name: each for name, each in more.items() if isinstance(each, tuple)}
    inside = {name: each for name, each in more.items() if isinstance(each, dict)}
    parts = []
    for name, value in el.fields(document):
        below = inside.pop(name, None) if value[0] == el.DOCUMENT else None
        parts.append(el.element(name, value if below is None else (el.DOCUMENT, _with(value[1], below))))
    if inside:
        raise ValueError(f"a value was rescued inside {next(iter(inside)).decode()!r}, which is no document")
    return el.framed(parts + [el.element(*each) for each in added.items()])


def _names_in(path: str) -> list[bytes]:
    """The names in a path: a backslash escapes a dot or a backslash, and an empty name is a backslash and 0."""
    names = [""]
    characters = iter(path)
    for character in characters:
        if character == "\\":
            escaped = next(characters)
            names[-1] += "" if escaped == "0" else escaped
        elif character == ".":
            names.append("")
        else:
            names[-1] += character
    return [name.encode() for name in names]


# --- columns ---------------------------------------------------------------------------------------------


def with_types(field: pa.Field, known: pa.Field | None) -> pa.Field:
    """A field with the types of ``known`` where the file does not say them.

    Files of version 0.2.0 do not say what the elements of arrays are; the schema in the state store does.
    """
    if known is None:
        return field
    type_, metadata = field.type, field.metadata
    if pa.types.is_struct(type_) and pa.types.is_struct(known.type):
        by_name = {inner.name: inner for inner in known.type}
        type_ = pa.struct([with_types(inner, by_name.get(inner.name)) for inner in type_])
    elif pa.types.is_list(type_) and pa.types.is_list(known.type):
        type_ = pa.list_(with_types(type_.value_field, known.type.value_field))
    elif type_ != known.type:
        return field
    return pa.field(field.name, type_, metadata=metadata or known.metadata)


def _name(field: pa.Field) -> bytes:
    return _metadata(field).get(b"bson.name", field.name.encode())


def _metadata(field: pa.Field) -> Mapping[bytes, bytes]:
    return field.metadata or {}


def _add(parts: list[list[bytes]], name: bytes, values: Values) -> None:
    """Add a field to the documents that have a value for it."""
    head = name + b"\0"
    for part, value in zip(parts, values, strict=True):
        if value is not None:
            part.append(KIND_BYTES[value[0]] + head + value[1])


def _column(column: pa.Array, field: pa.Field) -> Values:
    """The values of a column; None for null."""
    kind = _metadata(field).get(b"bson.type", b"").decode() or _kind_of(field.type)
    match kind:
        case "struct":
            return _structs(column, field)
        case "list":
            return _lists(column, field)
        case "float64":
            data = column.fill_null(0.0).to_numpy(zero_copy_only=False).tobytes()
            values: Values = [(el.DOUBLE, data[at : at + 8]) for at in range(0, len(data), 8)]
            return values if not column.null_count else _masked(values, column)
        case "binary":
            subtype = int(_metadata(field).get(b"bson.subtype", b"0"))
            return [None if each is None else el.binary(each, subtype) for each in column.to_pylist()]
    stored, value = _SCALARS[kind]
    found = (column if stored is None else column.cast(stored)).to_pylist()
    return [None if each is None else value(each) for each in found]


def _masked(values: Values, column: pa.Array) -> Values:
    valid = column.is_valid().to_pylist()
    return [value if there else None for value, there in zip(values, valid, strict=True)]


def _structs(column: pa.StructArray, field: pa.Field) -> Values:
    parts: list[list[bytes]] = [[] for _ in range(len(column))]
    for inner, values in zip(field.type, column.flatten(), strict=True):
        _add(parts, _name(inner), _column(values, inner))
    return _masked([(el.DOCUMENT, el.framed(each)) for each in parts], column)


def _lists(column: pa.ListArray, field: pa.Field) -> Values:
    items = iter(_column(column.flatten(), field.type.value_field))
    return [
        None if count is None else el.array(_taken(items, count)) for count in column.value_lengths().to_pylist()
    ]


def _taken(items: Iterator[Value | None], count: int) -> list[Value]:
    return [next(items) or (el.NULL, b"") for _ in range(count)]


def _kind_of(type_: pa.DataType) -> str:
    """What a column has if the file's metadata do not say."""
    if pa.types.is_struct(type_) or pa.types.is_list(type_):
        return "struct" if pa.types.is_struct(type_) else "list"
    if pa.types.is_decimal(type_):
        return "decimal128"
    return _KINDS[type_]


_KINDS = {
    pa.float64(): "float64",
    pa.int64(): "int64",
    pa.int32(): "int32",
    pa.bool_(): "bool",
    pa.string(): "string",
    _MILLISECONDS: "timestamp",
    pa.binary(12): "object_id_binary",
    pa.binary(): "binary",
}


def _decimal(value: Any) -> Value:
    """A number of a ``decimal128`` column: a Decimal128, or a double if it has more digits than that takes."""
    with localcontext(create_decimal128_context()) as context:
        context.traps[Inexact] = True
        try:
            return el.DECIMAL128, Decimal128(context.create_decimal(value)).bid
        except Inexact:
            return el.DOUBLE, el.pack_double(float(value))


_SCALARS: dict[str, tuple[pa.DataType | None, Callable[[Any], Value]]] = {
    "int64": (None, el.integer),
    "int32": (None, el.integer),
    "bool": (None, lambda value: (el.BOOL, b"\1" if value else b"\0")),
    "string": (pa.binary(), el.text),
    "timestamp": (pa.int64(), lambda value: (el.DATE, el.pack_int64(value))),
    "object_id": (None, lambda value: (el.OBJECT_ID, bytes.fromhex(value))),
    "object_id_binary": (None, lambda value: (el.OBJECT_ID, value)),
    "decimal": (None, lambda value: (el.DECIMAL128, Decimal128(value).bid)),
    "decimal128": (None, _decimal),
    "uuid": (None, lambda value: el.binary(UUID(value).bytes, el.UUID_SUBTYPE)),
    "json": (None, value_of),
}
