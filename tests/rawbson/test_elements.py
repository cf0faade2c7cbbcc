"""The elements of one document, and malformed documents."""

from __future__ import annotations

import struct
from contextlib import suppress

import bson
import pytest
from bson import ObjectId
from bson.timestamp import Timestamp

from engine.rawbson.elements import MalformedBSON, elements, find, value_size
from engine.rawbson.offsets import document_offsets

DOCUMENT = bson.encode(
    {
        "d": 1.5,
        "s": "é",
        "o": {"x": 1},
        "a": [1],
        "b": b"12",
        "i": ObjectId(),
        "t": True,
        "n": None,
        "l": bson.Int64(1),
    }
    | {
        "r": bson.Regex("a", "i"),
        "c": bson.Code("x"),
        "m": bson.MinKey(),
        "x": bson.MaxKey(),
        "ts": Timestamp(1, 2),
    }
    | {"cs": bson.Code("x", {"y": 1}), "de": bson.Decimal128("1"), "da": bson.DatetimeMS(5), "i3": 3}
)


def test_all_elements_of_a_document() -> None:
    found = list(elements(DOCUMENT, 0))
    assert [name.decode() for _, name, _, _ in found] == list(bson.decode(DOCUMENT))
    for kind, _, at, end in found:
        assert value_size(DOCUMENT, kind, at) == end - at
    assert found[-1][3] == len(DOCUMENT) - 1
    assert find(DOCUMENT, 0, b"nothing") is None


def test_truncated_or_changed_bytes_are_never_read_past() -> None:
    for cut in range(len(DOCUMENT)):
        data = DOCUMENT[:cut]
        with pytest.raises((MalformedBSON, struct.error, IndexError)):
            list(elements(data, 0))
    for at in range(len(DOCUMENT)):
        for byte in (0, 1, 0x7F, 0xFF):
            data = DOCUMENT[:at] + bytes([byte]) + DOCUMENT[at + 1 :]
            with suppress(MalformedBSON, struct.error, IndexError):
                assert all(end <= len(data) for _, _, _, end in elements(data, 0))


def test_a_batch_that_lies_about_its_sizes() -> None:
    good = bson.encode({"a": [{"x": 1}, {"x": 2}]})
    start = find(good, 0, b"a")
    assert start is not None
    for size in (0, 5, 100, -1, 2**31 - 1):
        bad = good[: start[1] + 7] + struct.pack("<i", size) + good[start[1] + 11 :]
        with pytest.raises((MalformedBSON, struct.error)):
            document_offsets(bad, start[1])
