"""Relaxed Extended JSON v2 (https://github.com/mongodb/specifications, source/extended-json).

Documents and arrays of plain values are written by compiled code (``rawbson/_json.c``), where an installation has
it. Otherwise the driver's C decoder reads documents, many in one call, and msgspec writes them. Anything that the
two would change is detected by encoding the result again and comparing bytes, and written value by value instead.
Numbers are written without loss: a double always with a point or an exponent, an integer with all its digits. The
three ways write the same.

There is one extension to Extended JSON: what it cannot express is written as ``{"$bson": "<base64>"}``, a BSON
document whose only field, with an empty name, holds the value. This applies to strings and names that are not
valid UTF-8, documents with a duplicate name or with names that have a meaning in Extended JSON (``{"$oid": 1}``),
arrays whose keys are not 0, 1, 2, ..., NaNs with a payload, and booleans that are neither 0 nor 1.
"""

from __future__ import annotations

import math
import re
from base64 import b64encode
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from struct import Struct as Layout
from typing import Any

import bson
import msgspec
import numpy as np
from bson.binary import Binary
from bson.code import Code
from bson.codec_options import CodecOptions, DatetimeConversion, TypeDecoder, TypeRegistry
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

from engine.decode.cursor import Ints
from engine.rawbson import elements as raw
from engine.rawbson import native
from engine.rawbson.elements import MalformedBSON, elements

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_YEAR_10000_MS = 253402300800000
MAX_DEPTH = 200
_INT32, _INT64, _DOUBLE = Layout("<i").unpack_from, Layout("<q").unpack_from, Layout("<d").unpack_from
_TIMESTAMP, _DECIMAL = Layout("<II").unpack_from, Layout("<QQ").unpack_from
# Names with a meaning in Extended JSON: a document with one of them would be read back as something else.
_WORDS = (
    "oid symbol numberInt numberLong numberDouble numberDecimal binary uuid type code scope timestamp date "
    "regularExpression regex options dbPointer minKey maxKey undefined bson"
)
_MEANINGFUL = frozenset(f"${word}" for word in _WORDS.split(" "))
_MAYBE_MEANINGFUL = re.compile(b"|".join(re.escape(name.encode()) for name in sorted(_MEANINGFUL)))
# A double that is infinite or NaN, by its last two bytes.
_MAYBE_NOT_FINITE = re.compile(rb"\x01[^\0]*\0.{6}[\xf0-\xff][\x7f\xff]", re.DOTALL)
_NOT_FINITE = {
    Layout("<d").pack(value): f'{{"$numberDouble":"{name}"}}'
    for value, name in ((math.inf, "Infinity"), (-math.inf, "-Infinity"), (math.nan, "NaN"))
}


class _Changed(ValueError):
    """The driver or msgspec would change a value."""


class _BinaryDecoder(TypeDecoder):
    """Decodes to ``Binary``, because msgspec would write ``bytes`` as a plain string."""

    bson_type = bytes

    def transform_bson(self, value: Any) -> Any:
        return Binary(value, 0)


# Lossless: dates of any size, binaries with their subtype, no conversion of UUIDs.
_LOSSLESS: CodecOptions[dict[str, Any]] = CodecOptions(
    datetime_conversion=DatetimeConversion.DATETIME_MS, type_registry=TypeRegistry([_BinaryDecoder()])
)


def documents_json(documents: Sequence[bytes]) -> list[str | None]:
    """Each BSON document as relaxed Extended JSON; None if it is malformed."""
    if not documents:
        return []
    try:
        return [*_by_driver(documents)]
    except (BSONError, ValueError, OverflowError, RecursionError):
        pass
    if len(documents) == 1:
        return [_or_none(documents[0], raw.DOCUMENT, 0, len(documents[0]))]
    half = len(documents) // 2
    return documents_json(documents[:half]) + documents_json(documents[half:])


def _by_driver(documents: Sequence[bytes]) -> list[str]:
    """Convert all documents together, by the driver and msgspec.

    Raises:
        _Changed: one of them would be changed.
        bson.errors.InvalidBSON: one of them is malformed.
    """
    joined = b"".join(documents)
    if _MAYBE_MEANINGFUL.search(joined):
        raise _Changed
    values: list[Any] = bson.decode_all(joined, _LOSSLESS)
    again = bson.encode({"": values})
    if len(values) != len(documents) or again[10:-2] != b"".join(
        [b"\x03%d\0%b" % (number, document) for number, document in enumerate(documents)]
    ):
        raise _Changed
    if _MAYBE_NOT_FINITE.search(joined):
        values = [_finite(value) for value in values]
    return _ENCODER.encode_lines(values)[:-1].decode().split("\n")


def values_json(
    data: bytes, kind: int, starts: Ints, ends: Ints, numbers: Sequence[float] | None = None
) -> Sequence[str | None]:
    """Each value of one BSON type as relaxed Extended JSON; None if it is malformed.

    Args:
        starts, ends: of each value, int64.
        numbers: the values themselves, if they are numbers and already decoded.
    """
    if kind in (raw.DOCUMENT, raw.ARRAY):
        return _nested_json(data, kind, starts, ends)
    if kind in (raw.INT32, raw.INT64) and numbers is not None:
        return list(map(str, numbers))
    if kind == raw.DOUBLE and numbers and all(map(math.isfinite, numbers)):
        return _ENCODER.encode(numbers)[1:-1].decode().split(",")
    bounds = list(zip(starts.tolist(), ends.tolist(), strict=True))
    if kind == raw.STRING and bounds:
        try:
            texts_ = [data[at + 4 : stop - 1].decode() for at, stop in bounds]
            return _ENCODER.encode_lines(texts_)[:-1].decode().split("\n")
        except UnicodeDecodeError:
            pass  # one of them is invalid; which one is determined below
    return [_or_none(data, kind, at, stop) for at, stop in bounds]


def _nested_json(data: bytes, kind: int, starts: Ints, ends: Ints) -> list[str | None]:
    """Documents or arrays: by the compiled code, and what it does not write by the rest of this module."""
    texts: list[str | None] = [None] * len(starts)
    if native.library is not None:
        written, text_ends = native.library.json(data, starts, ends, kind == raw.ARRAY)
        bounds = pairwise([0, *np.frombuffer(text_ends, np.int64).tolist()])
        if written.isascii():
            text = written.decode()
            texts = [text[at:stop] or None for at, stop in bounds]
        else:
            texts = [written[at:stop].decode() or None for at, stop in bounds]
    if left := [index for index, text in enumerate(texts) if text is None]:
        values = [data[starts[index] : ends[index]] for index in left]
        others = documents_json(values) if kind == raw.DOCUMENT else _arrays_json(values)
        for index, other in zip(left, others, strict=True):
            texts[index] = other
    return texts


def _arrays_json(arrays: Sequence[bytes]) -> list[str | None]:
    texts = documents_json([_framed(raw.ARRAY, each) for each in arrays])
    return [None if text is None else text[len('{"":') : -1] for text in texts]


def _or_none(data: bytes, kind: int, at: int, stop: int) -> str | None:
    try:
        return value_json(data, kind, at, stop)
    except MalformedBSON:
        return None


def _framed(kind: int, value: bytes) -> bytes:
    """The BSON document whose only field, with an empty name, holds the value."""
    return (len(value) + 7).to_bytes(4, "little") + bytes([kind, 0]) + value + b"\0"


def text_json(text: str) -> str:
    """A string as JSON."""
    return _ENCODER.encode(text).decode()


# --- documents by the driver and msgspec -----------------------------------------------------------------


class _NotFinite:
    """A double that msgspec would write as null."""

    __slots__ = ("value",)

    def __init__(self, value: float) -> None:
        self.value = value


def _finite(value: Any) -> Any:
    """``value`` with every non-finite double wrapped."""
    if isinstance(value, float) and not math.isfinite(value):
        return _NotFinite(value)
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    if isinstance(value, DBRef):
        return _finite(dict(value.as_doc()))
    return value


def _extended(value: Any) -> Any:
    """What is not plain JSON, as an Extended JSON object."""
    if isinstance(value, Int64):
        return int(value)
    if isinstance(value, ObjectId):
        return {"$oid": str(value)}
    if isinstance(value, DatetimeMS):
        return {"$date": _date(int(value))}
    if isinstance(value, Decimal128):
        return {"$numberDecimal": _decimal_text(value)}
    if isinstance(value, Binary):
        return _binary(value, value.subtype)
    if isinstance(value, Code):
        code: dict[str, Any] = {"$code": str(value)}
        return code if value.scope is None else code | {"$scope": _finite(dict(value.scope))}
    if isinstance(value, Regex):
        options = "".join(char for flag, char in _REGEX_FLAGS if value.flags & flag)
        return {"$regularExpression": {"pattern": value.pattern, "options": options}}
    if isinstance(value, Timestamp):
        return {"$timestamp": {"t": value.time, "i": value.inc}}
    if isinstance(value, DBRef):
        return dict(value.as_doc())
    if isinstance(value, _NotFinite):
        return msgspec.Raw(_not_finite(Layout("<d").pack(value.value)).encode())
    if isinstance(value, MinKey):
        return {"$minKey": 1}
    if isinstance(value, MaxKey):
        return {"$maxKey": 1}
    raise TypeError(f"no Extended JSON for {type(value).__name__}")


def _decimal_text(value: Decimal128) -> str:
    text = str(value)
    if Decimal128(text).bid != value.bid:
        raise _Changed
    return text


def decimal_text(bid: bytes) -> str | None:
    """The text of a Decimal128; None if parsing the text would not give the same 16 bytes."""
    try:
        return _decimal_text(Decimal128.from_bid(bid))
    except _Changed:
        return None


def _binary(value: bytes, subtype: int) -> dict[str, Any]:
    return {"$binary": {"base64": b64encode(value).decode(), "subType": f"{subtype:02x}"}}


def _date(milliseconds: int) -> Any:
    """RFC 3339 for the years 1970 to 9999, with milliseconds only if they are not 0; otherwise a number."""
    if not 0 <= milliseconds < _YEAR_10000_MS:
        return {"$numberLong": str(milliseconds)}
    time = _EPOCH + timedelta(milliseconds=milliseconds)
    fraction = f".{milliseconds % 1000:03d}" if milliseconds % 1000 else ""
    return f"{time:%Y-%m-%dT%H:%M:%S}{fraction}Z"


def _not_finite(packed: bytes) -> str:
    """A non-finite double, given as its 8 bytes."""
    return _NOT_FINITE.get(packed) or as_bson(raw.DOUBLE, packed)


_REGEX_FLAGS = [
    (re.IGNORECASE, "i"),
    (re.LOCALE, "l"),
    (re.MULTILINE, "m"),
    (re.DOTALL, "s"),
    (re.UNICODE, "u"),
    (re.VERBOSE, "x"),
]
_ENCODER = msgspec.json.Encoder(enc_hook=_extended)


# --- value by value, from the bytes ----------------------------------------------------------------------


def as_bson(kind: int, value: bytes) -> str:
    """A value that Extended JSON cannot express."""
    return f'{{"$bson":"{b64encode(_framed(kind, value)).decode()}"}}'


def value_json(data: bytes, kind: int, at: int, stop: int, depth: int = 0) -> str:
    """The value of type ``kind`` from ``at`` to ``stop`` as exact relaxed Extended JSON.

    Raises:
        MalformedBSON: it is not a valid value of its type.
    """
    if depth > MAX_DEPTH:
        raise MalformedBSON(f"more than {MAX_DEPTH} levels at byte {at}")
    match kind:
        case raw.DOCUMENT:
            return _document_json(data, at, stop, depth)
        case raw.ARRAY:
            return _array_json(data, at, stop, depth)
        case raw.NULL:
            return "null"
        case raw.INT32:
            return str(_INT32(data, at)[0])
        case raw.INT64:
            return str(_INT64(data, at)[0])
        case raw.DOUBLE:
            value = _DOUBLE(data, at)[0]
            return _ENCODER.encode(value).decode() if math.isfinite(value) else _not_finite(data[at:stop])
        case raw.BOOL if data[at] < 2:
            return "true" if data[at] else "false"
        case raw.CODE_WITH_SCOPE:
            return _code_with_scope_json(data, at, stop, depth)
    found = _extended_object(data, kind, at, stop)
    return as_bson(kind, data[at:stop]) if found is None else _ENCODER.encode(found).decode()


def _extended_object(data: bytes, kind: int, at: int, stop: int) -> Any:
    """A scalar as an object for the JSON encoder; None if Extended JSON cannot express it."""
    match kind:
        case raw.STRING:
            return utf8(data[at + 4 : stop - 1])
        case raw.OBJECT_ID:
            return {"$oid": data[at:stop].hex()}
        case raw.DATE:
            return {"$date": _date(_INT64(data, at)[0])}
        case raw.BINARY:
            value = binary_value(data, at, stop)
            return None if value is None else _binary(value, data[at + 4])
        case raw.UNDEFINED:
            return {"$undefined": True}
        case raw.TIMESTAMP:
            increment, seconds = _TIMESTAMP(data, at)
            return {"$timestamp": {"t": seconds, "i": increment}}
        case raw.DECIMAL128:
            text = decimal_text(data[at:stop])
            return None if text is None else {"$numberDecimal": text}
        case raw.MIN_KEY:
            return {"$minKey": 1}
        case raw.MAX_KEY:
            return {"$maxKey": 1}
        case raw.CODE | raw.SYMBOL:
            string = utf8(data[at + 4 : stop - 1])
            return None if string is None else {"$code" if kind == raw.CODE else "$symbol": string}
        case raw.REGEX:
            pattern, options = (utf8(text) for text in data[at : stop - 1].split(b"\0"))
            if pattern is None or options is None:
                return None
            return {"$regularExpression": {"pattern": pattern, "options": options}}
        case raw.DB_POINTER:
            if data[stop - 13]:
                raise MalformedBSON(f"unterminated name at byte {at}")
            name = utf8(data[at + 4 : stop - 13])
            key = {"$oid": data[stop - 12 : stop].hex()}
            return None if name is None else {"$dbPointer": {"$ref": name, "$id": key}}
    return None


def _document_json(data: bytes, at: int, stop: int, depth: int) -> str:
    members: dict[str, str] = {}
    count = 0
    for kind, name, value, end in within(data, at, stop):
        count += 1
        text, label = value_json(data, kind, value, end, depth + 1), utf8(name)
        if label is not None and label not in _MEANINGFUL:
            members[label] = text
    if len(members) < count:
        return as_bson(raw.DOCUMENT, data[at:stop])
    return "{" + ",".join([f"{text_json(name)}:{text}" for name, text in members.items()]) + "}"


def _array_json(data: bytes, at: int, stop: int, depth: int) -> str:
    texts, counted = [], True
    for number, (kind, name, value, end) in enumerate(within(data, at, stop)):
        texts.append(value_json(data, kind, value, end, depth + 1))
        counted = counted and name == b"%d" % number
    return "[" + ",".join(texts) + "]" if counted else as_bson(raw.ARRAY, data[at:stop])


def _code_with_scope_json(data: bytes, at: int, stop: int, depth: int) -> str:
    size = _INT32(data, at + 4)[0]
    scope = at + 8 + size
    if size < 1 or scope + 5 > stop or data[scope - 1]:
        raise MalformedBSON(f"the code at byte {at} does not end before its scope")
    text = _document_json(data, scope, stop, depth + 1)
    code = utf8(data[at + 8 : scope - 1])
    if code is None:
        return as_bson(raw.CODE_WITH_SCOPE, data[at:stop])
    return f'{{"$code":{text_json(code)},"$scope":{text}}}'


def within(data: bytes, at: int, stop: int) -> Any:
    """The elements of a document that must end at ``stop``."""
    if stop - at < 5 or _INT32(data, at)[0] != stop - at:
        raise MalformedBSON(f"the document at byte {at} does not end at byte {stop}")
    return elements(data, at)


def utf8(text: bytes) -> str | None:
    """The text; None if it is not valid UTF-8."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return None


def binary_value(data: bytes, at: int, stop: int) -> bytes | None:
    """The bytes of a binary; None for one of subtype 2 whose two lengths are inconsistent."""
    if data[at + 4] != raw.OLD_BINARY:
        return data[at + 5 : stop]
    if stop - at < 9 or _INT32(data, at + 5)[0] != stop - at - 9:
        return None
    return data[at + 9 : stop]
