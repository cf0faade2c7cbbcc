"""Walking over one BSON document's elements without decoding them (https://bsonspec.org/spec.html).

For the few documents that are looked at one by one: a reply's envelope, the first row of a shape. Rows in
bulk are ``engine.decode``'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct as Layout

_INT32 = Layout("<i").unpack_from

# Bytes of a value whose size is fixed by its type.
FIXED_SIZES = {
    0x01: 8,  # double
    0x06: 0,  # undefined
    0x07: 12,  # ObjectId
    0x08: 1,  # boolean
    0x09: 8,  # date
    0x0A: 0,  # null
    0x10: 4,  # int32
    0x11: 8,  # timestamp
    0x12: 8,  # int64
    0x13: 16,  # Decimal128
    0x7F: 0,  # max key
    0xFF: 0,  # min key
}
# Bytes to add to the int32 at the value's start, to get the value's size.
SIZED = {
    0x02: 4,  # string
    0x03: 0,  # document
    0x04: 0,  # array
    0x05: 5,  # binary
    0x0C: 16,  # DBPointer
    0x0D: 4,  # code
    0x0E: 4,  # symbol
    0x0F: 0,  # code with scope
}


class MalformedBSON(ValueError):
    """The bytes are no BSON document."""


def value_size(data: bytes, kind: int, at: int) -> int:
    """The bytes of the value of type ``kind`` that begins at ``at``.

    Raises:
        MalformedBSON: an unknown type, or a negative size.
    """
    if (fixed := FIXED_SIZES.get(kind)) is not None:
        return fixed
    if kind == 0x0B:  # regex: two C strings
        first = _c_string_end(data, at)
        return _c_string_end(data, first) - at
    if kind not in SIZED:
        raise MalformedBSON(f"type {kind:#04x} at byte {at}")
    size: int = _INT32(data, at)[0] + SIZED[kind]
    if size <= 0:
        raise MalformedBSON(f"size {size} at byte {at}")
    return size


def elements(data: bytes, start: int) -> Iterator[tuple[int, bytes, int, int]]:
    """The elements of the document that begins at ``start``: type, name, and where the value begins and ends.

    Raises:
        MalformedBSON: an element does not lie within the document.
    """
    if start < 0 or start + 5 > len(data):
        raise MalformedBSON(f"no document at byte {start}")
    end = start + _INT32(data, start)[0] - 1
    if not start + 4 <= end < len(data):
        raise MalformedBSON(f"the document at byte {start} ends at byte {end}")
    at = start + 4
    while at < end:
        kind = data[at]
        value = _c_string_end(data, at + 1)
        stop = value + value_size(data, kind, value)
        if stop > end:
            raise MalformedBSON(f"the element at byte {at} ends at byte {stop}, its document at {end}")
        yield kind, bytes(data[at + 1 : value - 1]), value, stop
        at = stop


def find(data: bytes, start: int, name: bytes) -> tuple[int, int, int] | None:
    """Type, value's begin and end of the first element called ``name``; None when there is none."""
    for kind, found, value, stop in elements(data, start):
        if found == name:
            return kind, value, stop
    return None


def read_string(data: bytes, at: int) -> str:
    """The UTF-8 string value at ``at``."""
    size = _INT32(data, at)[0]
    return bytes(data[at + 4 : at + 4 + size - 1]).decode()


def _c_string_end(data: bytes, at: int) -> int:
    """The byte behind the NUL that ends the C string at ``at``."""
    end = data.find(b"\0", at)
    if end < 0:
        raise MalformedBSON(f"the name at byte {at} does not end")
    return end + 1
