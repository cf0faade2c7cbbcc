"""Relaxed Extended JSON v2 (https://github.com/mongodb/specifications, source/extended-json).

The driver's C decoder reads the value, msgspec writes it. Numbers are written so that nothing is lost: a
double always with a point or an exponent, an integer with all its digits.
"""

from __future__ import annotations

import math
import re
from base64 import b64encode
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import bson
import msgspec
from bson.binary import Binary
from bson.code import Code
from bson.codec_options import CodecOptions, DatetimeConversion, TypeDecoder, TypeRegistry
from bson.datetime_ms import DatetimeMS
from bson.dbref import DBRef
from bson.decimal128 import Decimal128
from bson.max_key import MaxKey
from bson.min_key import MinKey
from bson.objectid import ObjectId
from bson.regex import Regex
from bson.timestamp import Timestamp

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_YEAR_10000_MS = 253402300800000
# The last two bytes of a double that is infinite or no number.
_MAYBE_NOT_FINITE = re.compile(rb"[\xf0-\xff][\x7f\xff]")


class _Wrapped:
    """A value whose Python type msgspec would write as plain JSON."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class _Wrapping(TypeDecoder):
    """Tells the driver to wrap what it decodes as ``bson_type``."""

    bson_type: Any = None

    def __init__(self, bson_type: type) -> None:
        self.bson_type = bson_type

    def transform_bson(self, value: Any) -> Any:
        return _Wrapped(value)


# Loses nothing: dates of any size, binaries with their subtype, no conversion of UUIDs.
LOSSLESS: CodecOptions[dict[str, Any]] = CodecOptions(datetime_conversion=DatetimeConversion.DATETIME_MS)
_FOR_JSON: CodecOptions[dict[str, Any]] = CodecOptions(
    datetime_conversion=DatetimeConversion.DATETIME_MS,
    type_registry=TypeRegistry([_Wrapping(each) for each in (bytes, Binary, Code)]),
)


def documents_json(documents: Iterable[bytes]) -> list[str]:
    """Each BSON document as relaxed Extended JSON.

    Raises:
        bson.errors.InvalidBSON: one of them cannot be decoded.
    """
    texts = []
    for data in documents:
        value = bson.decode(data, _FOR_JSON)
        if _MAYBE_NOT_FINITE.search(data):
            value = _finite(value)
        texts.append(_encode(value))
    return texts


def value_json(value: Any) -> str:
    """A value that was decoded with ``LOSSLESS`` as relaxed Extended JSON."""
    return _encode(_finite(value))


def member_name(name: str) -> str:
    """A name as it stands in a JSON object."""
    return _encode(name)


def _encode(value: Any) -> str:
    return _ENCODER.encode(value).decode()


def _finite(value: Any) -> Any:
    """``value`` with everything wrapped that msgspec would write as something else."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    if isinstance(value, DBRef):
        return _finite(dict(value.as_doc()))
    if isinstance(value, bytes | Code) or (isinstance(value, float) and not math.isfinite(value)):
        return _Wrapped(value)
    return value


def _extended(value: Any) -> Any:
    """What is no JSON as an Extended JSON object."""
    if isinstance(value, _Wrapped):
        value = value.value
    if isinstance(value, ObjectId):
        return {"$oid": str(value)}
    if isinstance(value, DatetimeMS):
        return {"$date": _date(int(value))}
    if isinstance(value, Decimal128):
        return {"$numberDecimal": str(value)}
    if isinstance(value, bytes):
        subtype = value.subtype if isinstance(value, Binary) else 0
        return {"$binary": {"base64": b64encode(value).decode(), "subType": f"{subtype:02x}"}}
    if isinstance(value, Code):
        code: dict[str, Any] = {"$code": str(value)}
        return code if value.scope is None else code | {"$scope": _finite(dict(value.scope))}
    if isinstance(value, Regex):
        options = "".join(char for flag, char in _REGEX_FLAGS if value.flags & flag)
        pattern = value.pattern if isinstance(value.pattern, str) else value.pattern.decode()
        return {"$regularExpression": {"pattern": pattern, "options": options}}
    if isinstance(value, Timestamp):
        return {"$timestamp": {"t": value.time, "i": value.inc}}
    if isinstance(value, DBRef):
        return dict(value.as_doc())
    if isinstance(value, float):
        return {"$numberDouble": "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    if isinstance(value, MinKey):
        return {"$minKey": 1}
    if isinstance(value, MaxKey):
        return {"$maxKey": 1}
    raise TypeError(f"no Extended JSON for {type(value).__name__}")


def _date(milliseconds: int) -> Any:
    """RFC 3339 for the years 1970 to 9999, with milliseconds only where there are some; else a number."""
    if not 0 <= milliseconds < _YEAR_10000_MS:
        return {"$numberLong": str(milliseconds)}
    time = _EPOCH + timedelta(milliseconds=milliseconds)
    fraction = f".{milliseconds % 1000:03d}" if milliseconds % 1000 else ""
    return f"{time:%Y-%m-%dT%H:%M:%S}{fraction}Z"


_REGEX_FLAGS = [
    (re.IGNORECASE, "i"),
    (re.LOCALE, "l"),
    (re.MULTILINE, "m"),
    (re.DOTALL, "s"),
    (re.UNICODE, "u"),
    (re.VERBOSE, "x"),
]
_ENCODER = msgspec.json.Encoder(enc_hook=_extended)
