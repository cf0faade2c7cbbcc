"""Scanning many arrays at once finds the elements that walking each array finds."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import bson
import numpy as np
import pytest
from bson import Decimal128, Int64, ObjectId, Regex
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.decode.arrays import scan_arrays
from engine.decode.cursor import Part, View, padded
from engine.rawbson.elements import MalformedBSON, elements
from engine.rawbson.native import PAYLOADS

pytestmark = pytest.mark.usefixtures("inner_loops")

Element = tuple[int, int, int]

VALUES = [1, 0.5, True, None, Int64(7), datetime(2026, 1, 1), ObjectId(b"0123456789ab"), Decimal128("1.5")]
SIZED = ["", "text " * 9, {}, {"a": 1, "b": [1, 2]}, [], [1.5] * 30, b"\0\1", Regex("a.*b", "i")]
# Parts of long arrays: one value repeated, with lengths around those where keys gain a digit.
stretches = st.tuples(st.sampled_from(VALUES + SIZED), st.sampled_from([1, 2, 9, 23, 24, 25, 90, 1000]))
harms = st.dictionaries(st.integers(0), st.integers(0, 255), max_size=2)
long_arrays = st.lists(stretches, max_size=4).map(lambda parts: [v for value, n in parts for v in [value] * n])


def reference(data: bytes, start: int) -> list[Element] | None:
    """Type, start and end of each element; None if the array is malformed."""
    try:
        found = list(elements(data, start))
    except MalformedBSON:
        return None
    if [name for _, name, _, _ in found] != [b"%d" % index for index in range(len(found))]:
        return None
    return [(kind, at, stop) for kind, _, at, stop in found]


def scanned(data: bytes, starts: list[int], stops: list[int]) -> list[list[Element] | None]:
    """The same by ``scan_arrays``, whose payloads are checked against the bytes."""
    view = View(padded(data, len(data)))
    odd: list[int] = []
    level = scan_arrays(view, Part(None, np.array(starts), np.array(stops), None), odd.extend)
    flat: list[Element | None] = [None] * level.count
    for kind, part in level.columns.get(b"", {}).items():
        rows = np.arange(level.count) if part.rows is None else part.rows
        assert (np.diff(rows) > 0).all()
        assert (part.payload is not None) == (kind in PAYLOADS)
        if part.payload is not None:
            assert part.payload.tobytes() == b"".join(data[a:b] for a, b in zip(part.at, part.stop, strict=True))
        for row, at, stop in zip(rows.tolist(), part.at.tolist(), part.stop.tolist(), strict=True):
            flat[row] = kind, at, stop
    assert level.owners.tolist() == np.repeat(np.arange(len(starts)), level.lengths).tolist()
    edges = np.cumsum(level.lengths)[:-1]
    parts = [list(each) for each in np.split(np.array([*flat, None], object)[:-1], edges)]
    return [None if row in odd else [tuple(x) for x in part] for row, part in enumerate(parts)]


def check(arrays: list[list[Any]], harm: dict[int, int] | None = None) -> list[list[Element] | None]:
    """Both find the same in these arrays, with some bytes changed."""
    documents = [bson.encode({"": array})[6:-1] for array in arrays]
    stops = np.cumsum([len(each) for each in documents]).tolist()
    starts = [0, *stops[:-1]]
    data = bytearray(b"".join(documents))
    for place, byte in (harm or {}).items():
        data[place % len(data)] = byte
    for stop in stops:
        data[stop - 1] = 0  # held to that where the array was found
    found = scanned(bytes(data), starts, stops)
    expected = []
    for start, stop in zip(starts, stops, strict=True):
        size = int.from_bytes(data[start : start + 4], "little", signed=True)
        expected.append(reference(bytes(data), start) if size == stop - start else None)
    assert found == expected
    return found


@given(st.lists(long_arrays, min_size=1, max_size=4), harms)
def test_few_arrays(arrays: list[list[Any]], harm: dict[int, int]) -> None:
    check(arrays, harm)


@settings(max_examples=40)
@given(
    st.lists(st.lists(st.sampled_from(VALUES + SIZED), max_size=20), min_size=1, max_size=3),
    st.lists(long_arrays, min_size=1, max_size=2),
    st.integers(1, 200),
    harms,
)
def test_many_arrays_and_some_of_them_long(
    short: list[list[Any]], long: list[list[Any]], times: int, harm: dict[int, int]
) -> None:
    check([*(short * times), *long, *short], harm)


@pytest.mark.parametrize("count", [1, 9, 10, 23, 24, 99, 1000, 100_003])
@pytest.mark.parametrize("value", [2.5, None, "a", {"n": 1}])
def test_a_vector(value: object, count: int) -> None:
    (found,) = check([[value] * count])
    assert found is not None
    assert len(found) == count


@pytest.mark.parametrize("count", [30, 300])
def test_every_byte_of_an_array_may_be_wrong(count: int) -> None:
    size = len(bson.encode({"": [0.5] * count})) - 7
    broken = 0
    for place in range(0, size, 1 if count < 100 else 7):
        broken += check([[0.5] * count], {place: 0x7E}) == [None]
    assert broken
