"""Relaxed Extended JSON, as the lake has it, back to BSON values.

The lake's JSON is described in configs/LAKE.md: MongoDB's relaxed Extended JSON v2, and ``{"$bson": "<base64>"}``,
a document whose only field, with an empty name, is the value. Members keep their order. A whole number comes back
as an int32 if it fits, else as an Int64; a number with a point or an exponent is a double.
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from bson.decimal128 import Decimal128

from engine.lake.documents import elements as el
from engine.lake.documents.elements import Value

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


class _Object:
    """A JSON object: its members, in their order."""

    __slots__ = ("members",)

    def __init__(self, members: list[tuple[str, Any]]) -> None:
        self.members = members


_parse: Callable[[str], Any] = json.JSONDecoder(object_pairs_hook=_Object).decode


def value_of(text: str) -> Value:
    """The value that a text stands for.

    Raises:
        ValueError: it is not Extended JSON.
    """
    return _value(_parse(text))


def members_of(text: str) -> dict[str, Value]:
    """The members of an object whose own names have no meaning, such as the paths in ``_cdc_rescued``.

    Raises:
        ValueError: it is not such an object.
    """
    found = _parse(text)
    if not isinstance(found, _Object):
        raise ValueError(f"not an object: {text[:80]}")
    return {name: _value(value) for name, value in found.members}


def _value(found: Any) -> Value:
    match found:
        case None:
            return el.NULL, b""
        case bool():
            return el.BOOL, b"\1" if found else b"\0"
        case int():
            return el.integer(found)
        case float():
            return el.DOUBLE, el.pack_double(found)
        case str():
            return el.text(found.encode())
        case list():
            return el.array(map(_value, found))
        case _Object():
            return _typed(found) or _document(found)
    raise ValueError(f"not a value of Extended JSON: {found!r}")


def _document(found: _Object) -> Value:
    return el.DOCUMENT, el.framed([el.element(name.encode(), _value(each)) for name, each in found.members])


def _typed(found: _Object) -> Value | None:
    """The value of an object whose names have a meaning; None for a document."""
    match found.members:
        case [("$bson", str() as text)]:
            ((_, value),) = el.fields(b64decode(text))
            return value
        case [("$oid", str() as text)]:
            return el.OBJECT_ID, bytes.fromhex(text)
        case [("$date", str() as text)]:
            return el.DATE, el.pack_int64((datetime.fromisoformat(text) - _EPOCH) // _MILLISECOND)
        case [("$date", _Object(members=[("$numberLong", str() as text)]))]:
            return el.DATE, el.pack_int64(int(text))
        case [("$numberDouble", str() as text)]:
            return el.DOUBLE, el.pack_double(float(text))
        case [("$numberDecimal", str() as text)]:
            return el.DECIMAL128, Decimal128(text).bid
        case [("$binary", _Object(members=[("base64", str() as data), ("subType", str() as subtype)]))]:
            return el.binary(b64decode(data), int(subtype, 16))
        case [("$symbol", str() as text)]:
            return el.text(text.encode(), el.SYMBOL)
        case [("$code", str() as text)]:
            return el.text(text.encode(), el.CODE)
        case [("$code", str() as text), ("$scope", _Object() as scope)]:
            inner = el.text(text.encode())[1] + _value(scope)[1]
            return el.CODE_WITH_SCOPE, el.pack_int32(len(inner) + 4) + inner
        case [("$timestamp", _Object(members=[("t", int() as seconds), ("i", int() as increment)]))]:
            return el.TIMESTAMP, (seconds << 32 | increment).to_bytes(8, "little")
        case [
            ("$regularExpression", _Object(members=[("pattern", str() as text), ("options", str() as options)]))
        ]:
            return el.REGEX, b"%b\0%b\0" % (text.encode(), options.encode())
        case [("$dbPointer", _Object(members=[("$ref", str() as text), ("$id", _Object() as key)]))]:
            return el.DB_POINTER, el.text(text.encode())[1] + _value(key)[1]
        case [("$minKey", 1)]:
            return el.MIN_KEY, b""
        case [("$maxKey", 1)]:
            return el.MAX_KEY, b""
        case [("$undefined", True)]:
            return el.UNDEFINED, b""
    return None
