"""BSON values as bytes: framing and taking apart (https://bsonspec.org/spec.html).

A value is its type and its bytes. The driver's objects would not do: it has none for a symbol, undefined, or a
document that has a name twice. This is not the code that the decoder uses, on purpose: what reads the lake back
must not have the faults of what wrote it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from struct import Struct as Layout

Value = tuple[int, bytes]

DOUBLE, STRING, DOCUMENT, ARRAY, BINARY, UNDEFINED, OBJECT_ID, BOOL, DATE, NULL = range(0x01, 0x0B)
REGEX, DB_POINTER, CODE, SYMBOL, CODE_WITH_SCOPE, INT32, TIMESTAMP, INT64, DECIMAL128 = range(0x0B, 0x14)
MAX_KEY, MIN_KEY = 0x7F, 0xFF
# A field that has one of these counts as one that is absent.
NOTHING = frozenset({NULL, UNDEFINED})

OLD_BINARY, UUID_SUBTYPE = 2, 4
KIND_BYTES = tuple(bytes([kind]) for kind in range(256))
_FIXED = {
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
# How many bytes follow, besides those that the value's first four bytes say.
_SIZED = {STRING: 4, DOCUMENT: 0, ARRAY: 0, BINARY: 5, DB_POINTER: 16, CODE: 4, SYMBOL: 4, CODE_WITH_SCOPE: 0}

pack_int32, pack_int64, pack_double = Layout("<i").pack, Layout("<q").pack, Layout("<d").pack
_INT32 = Layout("<i").unpack_from


def element(name: bytes, value: Value) -> bytes:
    """A field of a document."""
    return b"%c%b\0%b" % (value[0], name, value[1])


def framed(elements: Iterable[bytes]) -> bytes:
    """A document that has these fields."""
    body = b"".join(elements)
    return b"%b%b\0" % (pack_int32(len(body) + 5), body)


def array(values: Iterable[Value]) -> Value:
    """An array of these values."""
    return ARRAY, framed([element(b"%d" % number, value) for number, value in enumerate(values)])


def text(data: bytes, kind: int = STRING) -> Value:
    """A string (or code, or a symbol) from its UTF-8."""
    return kind, b"%b%b\0" % (pack_int32(len(data) + 1), data)


def integer(value: int) -> Value:
    """A whole number of up to 64 bits: an int32 if it fits, else an Int64, as the driver writes an ``int``."""
    return (INT32, pack_int32(value)) if -(2**31) <= value < 2**31 else (INT64, pack_int64(value))


def binary(data: bytes, subtype: int) -> Value:
    """A binary; one of the old subtype has its length twice."""
    if subtype == OLD_BINARY:
        data = pack_int32(len(data)) + data
    return BINARY, b"%b%c%b" % (pack_int32(len(data)), subtype, data)


def fields(document: bytes) -> Iterator[tuple[bytes, Value]]:
    """The name and the value of each field of a document (or of each element of an array), in order.

    Raises:
        ValueError: it is not BSON.
    """
    at, stop = 4, len(document) - 1
    if stop < at or _INT32(document, 0)[0] != len(document) or document[stop]:
        raise ValueError("a document does not have the length that it says")
    while at < stop:
        kind, name_end = document[at], document.index(b"\0", at + 1, stop)
        start = name_end + 1
        end = start + _size(document, kind, start)
        if end > stop:
            raise ValueError("a value reaches beyond its document")
        yield document[at + 1 : name_end], (kind, document[start:end])
        at = end


def _size(document: bytes, kind: int, start: int) -> int:
    """The number of bytes of a value."""
    if (size := _FIXED.get(kind)) is not None:
        return size
    if (more := _SIZED.get(kind)) is not None and start + 4 < len(document):
        said: int = _INT32(document, start)[0]
        return max(said, 0) + more
    if kind == REGEX:
        return document.index(b"\0", document.index(b"\0", start) + 1) + 1 - start
    raise ValueError(f"there is no BSON type {kind}")
