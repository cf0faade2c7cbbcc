"""The row-by-row decoder: one document at a time, from its bytes to the same columns.

It handles what no vector step can: documents with a duplicate name, names that are not valid UTF-8, arrays whose
keys are not 0, 1, 2, ...; and it decides whether bytes are BSON at all. It is also the reference: it must agree
with the vector of cursors on every document, and tests compare it with the driver's own decoder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from struct import Struct as Layout
from typing import Any, NamedTuple
from uuid import UUID

import pyarrow as pa

from engine.core.position import token_time
from engine.core.schema import DataType, Field, path_of
from engine.decode.columns import decimal_of
from engine.decode.identity import merge_key
from engine.decode.json import binary_value, decimal_text, text_json, utf8, value_json
from engine.decode.schema import MAX_MS, Observed, arrow_type
from engine.rawbson import elements as raw
from engine.rawbson.elements import MalformedBSON, elements

REFUSED = object()
_INT32, _INT64, _DOUBLE = Layout("<i").unpack_from, Layout("<q").unpack_from, Layout("<d").unpack_from


class Value(NamedTuple):
    """One BSON value in place: its type, and its bytes from ``at`` to ``stop``."""

    data: bytes
    kind: int
    at: int
    stop: int

    def json(self) -> str:
        """The value as relaxed Extended JSON."""
        return value_json(self.data, self.kind, self.at, self.stop)

    def fields(self) -> dict[str, Value] | None:
        """The fields of a document; None if a name is duplicate or not valid UTF-8."""
        found, unambiguous = self.unambiguous_fields()
        return found if unambiguous else None

    def unambiguous_fields(self) -> tuple[dict[str, Value], bool]:
        """The fields of a document whose names are unique and valid UTF-8, and whether those are all."""
        found: dict[str, Value] = {}
        twice: set[str] = set()
        all_named = True
        for kind, name, at, stop in elements(self.data, self.at):
            if (label := utf8(name)) is None:
                all_named = False
            elif label in found:
                twice.add(label)
            else:
                found[label] = Value(self.data, kind, at, stop)
        return {name: value for name, value in found.items() if name not in twice}, all_named and not twice

    def items(self) -> list[Value] | None:
        """The elements of an array; None if their keys are not 0, 1, 2, ..."""
        found, counted = [], True
        for number, (kind, name, at, stop) in enumerate(elements(self.data, self.at)):
            counted = counted and name == b"%d" % number
            found.append(Value(self.data, kind, at, stop))
        return found if counted else None

    def text(self) -> str | None:
        """A string; None for other types and for invalid UTF-8."""
        return utf8(self.data[self.at + 4 : self.stop - 1]) if self.kind == raw.STRING else None


def whole(data: bytes) -> Value:
    """The document that spans all of ``data``."""
    return Value(data, raw.DOCUMENT, 0, len(data))


class Event(NamedTuple):
    """One change event: the fields of its envelope."""

    fields: dict[str, Value]

    def get(self, name: str, kind: int) -> Value | None:
        """A field, if it has the expected type."""
        value = self.fields.get(name)
        return value if value is not None and value.kind == kind else None


def read_event(data: bytes) -> Event | None:
    """One event; None if its bytes are not BSON, or not the envelope of an event."""
    try:
        event = whole(data)
        event.json()  # validates every byte
        fields = event.fields()
    except (MalformedBSON, RecursionError):
        return None
    if fields is None:
        return None
    found = Event(fields)
    operation = found.get("operationType", raw.STRING)
    return None if operation is not None and operation.text() is None else found


def is_document(data: bytes) -> bool:
    """Whether the bytes are one BSON document."""
    try:
        whole(data).json()
    except (MalformedBSON, RecursionError):
        return False
    return True


# --- observed types --------------------------------------------------------------------------------------


def observe(document: Value, into: dict[str, Observed]) -> None:
    """Count the values of one document."""
    for name, value in document.unambiguous_fields()[0].items():
        _observe_value(value, into.setdefault(name, Observed()))


def _observe_value(value: Value, seen: Observed) -> None:
    if value.kind == raw.BINARY:
        seen.add_binaries({value.data[value.at + 4]: 1})
        return
    seen.add(value.kind)
    if value.kind == raw.DOCUMENT and (fields := value.fields()) is not None:
        for name, inner in fields.items():
            _observe_value(inner, seen.field(name))
    elif value.kind == raw.ARRAY and (items := value.items()) is not None:
        for item in items:
            _observe_value(item, seen.elements())


# --- columns ---------------------------------------------------------------------------------------------


class Lost(NamedTuple):
    """The values of a document that its columns could not hold.

    Attributes:
        values: relaxed Extended JSON by path.
        mismatched: path, BSON type and column type of those that have a column, but of another type.
    """

    values: dict[str, str]
    mismatched: list[tuple[str, int, DataType]]


def columns(documents: Sequence[Value | None], fields: Sequence[Field]) -> tuple[dict[str, pa.Array], list[Lost]]:
    """The columns of these documents, and what was rescued from each."""
    lost = [Lost({}, []) for _ in documents]
    by_name = {field.name: field for field in fields}
    rows: list[dict[str, Any]] = []
    for document, rescued in zip(documents, lost, strict=True):
        if document is None:
            rows.append({})
            continue
        found, unambiguous = document.unambiguous_fields()
        rows.append(_fit_fields(found, by_name, "", rescued))
        if not unambiguous:
            rescued.values.clear()
            rescued.values[""] = document.json()
    arrays = {}
    for field in fields:
        column = field.column_name
        if field.type.kind != "drop" and any(column in row for row in rows):
            arrays[column] = pa.array([row.get(column) for row in rows], arrow_type(field.type))
    return arrays, lost


def _fit_fields(found: Mapping[str, Value], fields: Mapping[str, Field], path: str, lost: Lost) -> dict[str, Any]:
    """The values of a level's columns, by column name."""
    fitted: dict[str, Any] = {}
    for name, value in found.items():
        if value.kind in raw.NOTHING:
            continue
        field, at = fields.get(name), path_of(path, name)
        if field is None:
            lost.values[at] = value.json()
        elif field.type.kind != "drop":
            result = fit(value, field.type, at, lost)
            if result is REFUSED:
                lost.values[at] = value.json()
                lost.mismatched.append((at, value.kind, field.type))
            else:
                fitted[field.column_name] = result
    return fitted


def fit(value: Value, type_: DataType, path: str, lost: Lost) -> Any:
    """A value as a column of this type holds it; ``REFUSED`` if it cannot hold it exactly.

    The rules are in ``engine.decode.columns``.
    """
    match type_.kind:
        case "json":
            return value.json()
        case "struct" if value.kind == raw.DOCUMENT:
            fields = value.fields()
            by_name = {field.name: field for field in type_.fields}
            return REFUSED if fields is None else _fit_fields(fields, by_name, path, lost)
        case "list" if value.kind == raw.ARRAY:
            return _fit_items(value.items(), type_)
        case "struct" | "list":
            return REFUSED
        case _:
            return _fit_scalar(value, type_)


def _fit_items(items: Sequence[Value] | None, type_: DataType) -> Any:
    """The elements of an array; all are refused if one does not fit, as no element can be rescued alone."""
    assert type_.item is not None
    inner = Lost({}, [])
    fitted = [None if item.kind in raw.NOTHING else fit(item, type_.item, "", inner) for item in items or ()]
    if items is None or inner.values or any(each is REFUSED for each in fitted):
        return REFUSED
    return fitted


def _fit_scalar(value: Value, type_: DataType) -> Any:
    data, kind, at, stop = value
    number: float | None = None
    if kind == raw.DOUBLE:
        number = _DOUBLE(data, at)[0]
    elif kind in (raw.INT32, raw.INT64):
        number = (_INT32 if kind == raw.INT32 else _INT64)(data, at)[0]
    fitted: Any = None
    match type_.kind, kind:
        case "float64", raw.DOUBLE:
            fitted = number
        case "float64", raw.INT32 | raw.INT64 if number is not None:
            fitted = float(number) if float(number) < 2.0**63 and int(float(number)) == number else None
        case "int64" | "int32", raw.INT32 | raw.INT64 | raw.DOUBLE if number is not None:
            fitted = _fit_integer(number, 63 if type_.kind == "int64" else 31)
        case "bool", raw.BOOL:
            fitted = bool(data[at]) if data[at] < 2 else None
        case "string", raw.STRING:
            fitted = value.text()
        case "timestamp", raw.DATE if abs(_INT64(data, at)[0]) <= MAX_MS:
            fitted = _INT64(data, at)[0]
        case "object_id", raw.OBJECT_ID:
            fitted = data[at:stop].hex()
        case "object_id_binary", raw.OBJECT_ID:
            fitted = data[at:stop]
        case "decimal", raw.DECIMAL128:
            fitted = decimal_text(data[at:stop])
        case "decimal128", raw.DECIMAL128 | raw.INT32 | raw.INT64 | raw.DOUBLE:
            exact = data[at:stop] if number is None else Decimal(number)
            fitted = decimal_of(exact, type_.precision, type_.scale)
        case "binary", raw.BINARY if data[at + 4] == type_.subtype:
            fitted = binary_value(data, at, stop)
        case "uuid", raw.BINARY if data[at + 4] == raw.UUID and stop - at == 5 + 16:
            fitted = str(UUID(bytes=data[at + 5 : stop]))
    return REFUSED if fitted is None else fitted


def _fit_integer(value: float, bits: int) -> int | None:
    if isinstance(value, float):
        whole_number = math.isfinite(value) and value == math.floor(value)
        if not whole_number or (value == 0 and math.copysign(1, value) < 0):
            return None
    return int(value) if -(2**bits) <= value < 2**bits else None


# --- events ----------------------------------------------------------------------------------------------


def envelope(event: Event, *, elsewhere: bool = False) -> dict[str, Any]:
    """The metadata columns of one event, by name, except the namespace's and ``_cdc_rescued``.

    Args:
        elsewhere: the event lands under another namespace, so its own goes to ``_cdc_extra``.
    """
    found: dict[str, Any] = {}
    extra: dict[str, str] = {}
    transaction: dict[str, str] = {}
    for name, value in event.fields.items():
        match name, value.kind:
            case "operationType", raw.STRING:
                found["_cdc_op"] = value.text()
            case "_id", raw.DOCUMENT:
                found["_cdc_token"] = _token(value)
            case "clusterTime", raw.TIMESTAMP:
                found["_cdc_timestamp"] = _INT64(value.data, value.at)[0]
                found["_cdc_cluster_time"] = int.from_bytes(value.data[value.at + 4 : value.stop], "little") * 1000
            case "wallTime", raw.DATE if abs(_INT64(value.data, value.at)[0]) <= MAX_MS:
                found["_cdc_wall_time"] = _INT64(value.data, value.at)[0]
            case "documentKey", raw.DOCUMENT:
                found |= {"_cdc_key": value.json(), "_cdc_id": keys_of(value).get("_cdc_id")}
            case "updateDescription", raw.DOCUMENT:
                found["_cdc_update"] = value.json()
            case "fullDocumentBeforeChange", raw.DOCUMENT:
                found["_cdc_before"] = value.json()
            case ("lsid", raw.DOCUMENT) | ("txnNumber", raw.INT64):
                transaction[name] = value.json()
            case "ns", raw.DOCUMENT if elsewhere:
                extra[name] = value.json()
            case (("ns" | "fullDocument"), raw.DOCUMENT) | (_, raw.NULL | raw.UNDEFINED):
                pass
            case _:
                extra[name] = value.json()
    for column, members in (("_cdc_txn", transaction), ("_cdc_extra", extra)):
        if members:
            found[column] = object_json(members)
    if "_cdc_timestamp" not in found:
        found["_cdc_timestamp"] = token_time(found.get("_cdc_token") or "")
    found["_cdc_has_document"] = event.get("fullDocument", raw.DOCUMENT) is not None
    return found


def keys_of(document: Value) -> dict[str, str]:
    """``_cdc_key`` and ``_cdc_id`` of a document; empty if it has no ``_id``."""
    key = document.unambiguous_fields()[0].get("_id")
    if key is None:
        return {}
    return {"_cdc_key": object_json({"_id": key.json()}), "_cdc_id": merge_key(*key)}


def _token(value: Value) -> str:
    """The resume token in ``_id``: its ``_data``, or the whole BSON as hex if it has another shape."""
    fields = value.fields() or {}
    kinds = {name: field.kind for name, field in fields.items()}
    known = kinds in ({"_data": raw.STRING}, {"_data": raw.STRING, "_typeBits": raw.BINARY})
    text = fields["_data"].text() if known else None
    return value.data[value.at : value.stop].hex() if text is None else text


def object_json(members: Mapping[str, str]) -> str:
    """A JSON object of members whose values are already JSON, sorted by name."""
    return "{" + ",".join([f"{text_json(name)}:{text}" for name, text in sorted(members.items())]) + "}"


def document_of(event: Event) -> Value | None:
    """The document that fills an event's columns: its own, or else its key."""
    return event.get("fullDocument", raw.DOCUMENT) or event.get("documentKey", raw.DOCUMENT)


def namespace_of(event: Event, name: str = "ns") -> tuple[str, str]:
    """Database and collection; empty if the event has none."""
    namespace = event.get(name, raw.DOCUMENT)
    fields = namespace.fields() if namespace is not None else None
    database, collection = ((fields or {}).get(name) for name in ("db", "coll"))
    return (database.text() or "" if database else "", collection.text() or "" if collection else "")
