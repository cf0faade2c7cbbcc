"""The row-by-row way: the driver's own decoder, and the same columns.

It takes what no vector step can: documents with a name twice, arrays of thousands of elements in a few rows,
and bytes that are no BSON, for which the driver's error is the verdict. It is also the reference: on every
document it must agree with the vector of cursors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import bson
import pyarrow as pa
from bson.binary import Binary
from bson.code import Code
from bson.datetime_ms import DatetimeMS
from bson.dbref import DBRef
from bson.decimal128 import Decimal128
from bson.errors import BSONError
from bson.int64 import Int64
from bson.max_key import MaxKey
from bson.min_key import MinKey
from bson.objectid import ObjectId
from bson.regex import Regex
from bson.timestamp import Timestamp

from engine.core.schema import DataType, Field
from engine.decode import cursor
from engine.decode.json import LOSSLESS, member_name, value_json
from engine.decode.schema import Observed, SchemaOptions, arrow_type

REFUSED = object()
_KINDS: tuple[tuple[type | tuple[type, ...], int], ...] = (
    (bool, cursor.BOOL),
    (Int64, cursor.INT64),
    (int, cursor.INT32),
    (float, cursor.DOUBLE),
    (Code, 0x0D),
    (str, cursor.STRING),
    (DatetimeMS, cursor.DATE),
    (ObjectId, cursor.OBJECT_ID),
    ((bytes, Binary), cursor.BINARY),
    (dict, cursor.DOCUMENT),
    (list, cursor.ARRAY),
    (Decimal128, cursor.DECIMAL128),
    (Timestamp, cursor.TIMESTAMP),
    (Regex, cursor.REGEX),
    (MinKey, 0xFF),
    (MaxKey, 0x7F),
)


def decode_event(data: bytes) -> dict[str, Any] | None:
    """One event by the driver; None when it cannot be decoded."""
    try:
        return _plain(bson.decode(data, LOSSLESS))  # type: ignore[no-any-return]
    except (BSONError, ValueError, OverflowError, RecursionError):
        return None


def _plain(value: Any) -> Any:
    """``value`` with DBRefs as the documents that they are on the wire."""
    if isinstance(value, DBRef):
        value = dict(value.as_doc())
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value


def kind_of(value: Any) -> int:
    """The BSON type that a decoded value had."""
    if value is None:
        return cursor.NULL
    for types, kind in _KINDS:
        if isinstance(value, types):
            return kind
    raise AssertionError(f"the driver gave a {type(value).__name__}")


def observe(document: Mapping[str, Any], into: dict[str, Observed]) -> None:
    """Count the values of one document."""
    for name, value in document.items():
        _observe_value(value, into.setdefault(name, Observed()))


def _observe_value(value: Any, seen: Observed) -> None:
    kind = kind_of(value)
    if kind == cursor.BINARY:
        seen.add_binaries({_subtype(value): 1})
        return
    seen.add(kind)
    if kind == cursor.DOCUMENT:
        observe(value, seen.fields)
    elif kind == cursor.ARRAY:
        for element in value:
            _observe_value(element, seen.elements())


def columns(
    documents: Sequence[Mapping[str, Any] | None], fields: Sequence[Field]
) -> tuple[dict[str, pa.Array], list[dict[str, str]]]:
    """The columns of these documents, and for each the JSON of what was rescued, by path."""
    rescued: list[dict[str, str]] = [{} for _ in documents]
    types = {field.name: field.type for field in fields}
    rows: list[dict[str, Any]] = []
    for document, lost in zip(documents, rescued, strict=True):
        rows.append(_fit_fields(document or {}, types, "", lost))
    arrays = {}
    for field in fields:
        if any(field.name in row for row in rows):
            arrays[field.name] = pa.array([row.get(field.name) for row in rows], arrow_type(field.type))
    return arrays, rescued


def _fit_fields(
    document: Mapping[str, Any], types: Mapping[str, DataType], path: str, lost: dict[str, str]
) -> dict[str, Any]:
    fitted: dict[str, Any] = {}
    for name, value in document.items():
        if value is None:
            continue
        type_ = types.get(name)
        result = REFUSED if type_ is None else fit(value, type_, path + name + ".", lost)
        if result is REFUSED:
            lost[path + name] = value_json(value)
        else:
            fitted[name] = result
    return fitted


def fit(value: Any, type_: DataType, path: str, lost: dict[str, str]) -> Any:
    """What a column of this type holds for a value; ``REFUSED`` when it cannot hold it exactly.

    The table stands in ``engine.decode.columns``.
    """
    match type_.kind:
        case "json":
            return value_json(value)
        case "struct" if isinstance(value, dict):
            return _fit_fields(value, {field.name: field.type for field in type_.fields}, path, lost)
        case "list" if isinstance(value, list):
            assert type_.item is not None
            inner: dict[str, str] = {}
            fitted = [None if each is None else fit(each, type_.item, path, inner) for each in value]
            return REFUSED if inner or any(each is REFUSED for each in fitted) else fitted
        case "struct" | "list":
            return REFUSED
        case _:
            return _fit_scalar(value, kind_of(value), type_)


def _fit_scalar(value: Any, kind: int, type_: DataType) -> Any:
    match type_.kind, kind:
        case "float64", cursor.DOUBLE:
            return value
        case "float64", cursor.INT32 | cursor.INT64 if float(value) < 2.0**63 and int(float(value)) == value:
            return float(value)
        case "int64" | "int32", cursor.INT32 | cursor.INT64 | cursor.DOUBLE:
            return _fit_integer(value, 63 if type_.kind == "int64" else 31)
        case ("bool", cursor.BOOL) | ("string", cursor.STRING):
            return value
        case "timestamp", cursor.DATE:
            return int(value)
        case "object_id", cursor.OBJECT_ID:
            return str(value)
        case "object_id_binary", cursor.OBJECT_ID:
            return value.binary
        case "decimal", cursor.DECIMAL128:
            return str(value)
        case "binary", cursor.BINARY if _subtype(value) == type_.subtype:
            return bytes(value)
        case "uuid", cursor.BINARY if _subtype(value) == 4 and len(value) == 16:
            return str(UUID(bytes=bytes(value)))
    return REFUSED


def _fit_integer(value: float, bits: int) -> Any:
    if isinstance(value, float):
        whole = math.isfinite(value) and value == math.floor(value)
        if not whole or (value == 0 and math.copysign(1, value) < 0):
            return REFUSED
    return int(value) if -(2**bits) <= value < 2**bits else REFUSED


def _subtype(value: bytes) -> int:
    return value.subtype if isinstance(value, Binary) else 0


def envelope(event: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata columns of one event, by name, but for the namespace's and ``_cdc_rescued``."""
    found: dict[str, Any] = {}
    extra: dict[str, str] = {}
    for name, value in event.items():
        match name, value:
            case "operationType", str():
                found["_cdc_op"] = value
            case "_id", {"_data": str() as token, **rest} if not rest:
                found["_cdc_token"] = token
            case "clusterTime", Timestamp():
                found["_cdc_cluster_time"] = value.time * 1000
            case "wallTime", DatetimeMS():
                found["_cdc_wall_time"] = int(value)
            case "documentKey", dict():
                found["_cdc_key"] = value_json(value)
            case "updateDescription", dict():
                found["_cdc_update"] = value_json(value)
            case "fullDocumentBeforeChange", dict():
                found["_cdc_before"] = value_json(value)
            case ("ns" | "fullDocument", dict()) | ("lsid", dict()) | ("txnNumber", Int64()) | (_, None):
                pass
            case _:
                extra[name] = value_json(value)
    transaction = {
        name: value_json(event[name])
        for name, type_ in (("lsid", dict), ("txnNumber", Int64))
        if isinstance(event.get(name), type_)
    }
    for column, members in (("_cdc_txn", transaction), ("_cdc_extra", extra)):
        if members:
            found[column] = object_json(members)
    return found


def object_json(members: Mapping[str, str]) -> str:
    """A JSON object of members whose values are JSON already, in the order of their names."""
    return "{" + ",".join(f"{member_name(name)}:{text}" for name, text in sorted(members.items())) + "}"


def document_of(event: Mapping[str, Any]) -> dict[str, Any] | None:
    """The document that an event's columns are filled from: its own, else its key."""
    for name in ("fullDocument", "documentKey"):
        if isinstance(found := event.get(name), dict):
            return found
    return None


def namespace_of(event: Mapping[str, Any]) -> tuple[str, str]:
    """Database and collection; empty where the event has none."""
    ns = event.get("ns")
    if not isinstance(ns, dict):
        return "", ""
    database, collection = ns.get("db"), ns.get("coll")
    return database if isinstance(database, str) else "", collection if isinstance(collection, str) else ""


__all__ = ["SchemaOptions", "columns", "decode_event", "document_of", "envelope", "fit", "namespace_of", "observe"]
