"""Iterates over one BSON document's elements without decoding them (https://bsonspec.org/spec.html).

For documents that are processed one by one: a reply's envelope, the first row of a shape, a row that no vector
step can handle. Rows in bulk are decoded by ``engine.decode``.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct as Layout

_INT32 = Layout("<i").unpack_from

DOUBLE, STRING, DOCUMENT, ARRAY, BINARY, UNDEFINED, OBJECT_ID, BOOL, DATE, NULL = range(1, 11)
REGEX, DB_POINTER, CODE, SYMBOL, CODE_WITH_SCOPE, INT32, TIMESTAMP, INT64, DECIMAL128 = range(0x0B, 0x14)
MAX_KEY, MIN_KEY = 0x7F, 0xFF
# The types that stand for a missing value.
NOTHING = (NULL, UNDEFINED)
# Subtypes of binaries; the old one contains its length twice.
OLD_BINARY, UUID = 2, 4

NAMES = {
    DOUBLE: "double",
    STRING: "string",
    DOCUMENT: "document",
    ARRAY: "array",
    BINARY: "binary",
    UNDEFINED: "undefined",
    OBJECT_ID: "ObjectId",
    BOOL: "bool",
    DATE: "date",
    NULL: "null",
    REGEX: "regular expression",
    DB_POINTER: "DBPointer",
    CODE: "JavaScript code",
    SYMBOL: "symbol",
    CODE_WITH_SCOPE: "JavaScript code with scope",
    INT32: "int32",
    TIMESTAMP: "timestamp",
    INT64: "int64",
    DECIMAL128: "Decimal128",
    MAX_KEY: "max key",
    MIN_KEY: "min key",
}

# Size in bytes of the types of fixed size.
FIXED_SIZES = {
    DOUBLE: 8,
    UNDEFINED: 0,
    OBJECT_ID: 12,
    BOOL: 1,
    DATE: 8,
    NULL: 0,
    INT32: 4,
    TIMESTAMP: 8,
    INT64: 8,
    DECIMAL128: 16,
    MAX_KEY: 0,
    MIN_KEY: 0,
}
# Bytes to add to the int32 at the start of a value to get its size.
SIZED = {STRING: 4, DOCUMENT: 0, ARRAY: 0, BINARY: 5, DB_POINTER: 16, CODE: 4, SYMBOL: 4, CODE_WITH_SCOPE: 0}
# The minimum size of such a value.
MIN_SIZES = {
    STRING: 5,
    DOCUMENT: 5,
    ARRAY: 5,
    BINARY: 5,
    DB_POINTER: 17,
    CODE: 5,
    SYMBOL: 5,
    CODE_WITH_SCOPE: 14,
}
ENDS_WITH_NUL = {STRING, DOCUMENT, ARRAY, CODE, SYMBOL, CODE_WITH_SCOPE}


class MalformedBSON(ValueError):
    """The bytes are not a valid BSON document."""


def value_size(data: bytes, kind: int, at: int) -> int:
    """The size in bytes of the value of type ``kind`` that starts at ``at``.

    Raises:
        MalformedBSON: unknown type, or a size too small for it.
    """
    if (fixed := FIXED_SIZES.get(kind)) is not None:
        return fixed
    if kind == REGEX:  # two C strings
        first = _c_string_end(data, at)
        return _c_string_end(data, first) - at
    if kind not in SIZED or at + 4 > len(data):
        raise MalformedBSON(f"type {kind:#04x} at byte {at}")
    size: int = _INT32(data, at)[0] + SIZED[kind]
    if size < MIN_SIZES[kind]:
        raise MalformedBSON(f"size {size} at byte {at}")
    return size


def elements(data: bytes, start: int) -> Iterator[tuple[int, bytes, int, int]]:
    """The elements of the document that starts at ``start``: type, name, and the value's start and end.

    The inside of a value is not checked, except for the NUL that must end some types.

    Raises:
        MalformedBSON: an element is not within the document, or the document not within ``data``.
    """
    if start < 0 or start + 5 > len(data):
        raise MalformedBSON(f"no document at byte {start}")
    end = start + _INT32(data, start)[0] - 1
    if not start + 4 <= end < len(data) or data[end]:
        raise MalformedBSON(f"the document at byte {start} does not end at byte {end}")
    at = start + 4
    while at < end:
        kind = data[at]
        value = _c_string_end(data, at + 1)
        stop = value + value_size(data, kind, value)
        if stop > end or (kind in ENDS_WITH_NUL and data[stop - 1]):
            raise MalformedBSON(f"the element at byte {at} ends at byte {stop}, its document at {end}")
        yield kind, bytes(data[at + 1 : value - 1]), value, stop
        at = stop


def find(data: bytes, start: int, name: bytes) -> tuple[int, int, int] | None:
    """Type, start and end of the value of the first element called ``name``; None if there is none."""
    for kind, found, value, stop in elements(data, start):
        if found == name:
            return kind, value, stop
    return None


def read_string(data: bytes, at: int) -> str:
    """The UTF-8 string value at ``at``."""
    size = _INT32(data, at)[0]
    return bytes(data[at + 4 : at + 4 + size - 1]).decode()


def _c_string_end(data: bytes, at: int) -> int:
    """The position after the NUL that ends the C string at ``at``."""
    end = data.find(b"\0", at)
    if end < 0:
        raise MalformedBSON(f"unterminated name at byte {at}")
    return end + 1
