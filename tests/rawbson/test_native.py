"""The compiled loops find what plain Python finds, whatever the names and their order, and whatever is broken."""

from __future__ import annotations

import random
from typing import Any

import bson
import numpy as np
import pytest

from engine.decode.cursor import PADDING, Level, Plan, View, padded, scan_documents
from engine.rawbson import native
from engine.rawbson.elements import MalformedBSON, elements

pytestmark = pytest.mark.skipif(native.library is None, reason="this installation has no compiled part")

Values = set[tuple[int, int, bytes, int, int]]


def scanned(documents: list[bytes], max_names: int = 2048) -> tuple[Values, set[int]]:
    """(row, type, name, start, end) of each value, and the odd rows."""
    data = b"".join(documents)
    ends = np.cumsum([len(each) for each in documents])
    odd: set[int] = set()
    level = scan_documents(
        View(padded(data, len(data))),
        ends - [len(each) for each in documents],
        ends,
        None,
        len(documents),
        Plan(),
        lambda rows: odd.update(rows.tolist()),
        max_names,
    )
    return {each for each in found_in(level) if each[0] not in odd}, odd


def found_in(level: Level) -> Values:
    """All values of a level; each once, or the test has failed."""
    found = [(each.row, each.kind, each.name, each.at, each.stop) for each in level.loose]
    for name, kinds in level.columns.items():
        for kind, part in kinds.items():
            rows = range(level.count) if part.rows is None else part.rows.tolist()
            values = zip(rows, part.at.tolist(), part.stop.tolist(), strict=True)
            found += [(row, kind, name, at, stop) for row, at, stop in values]
    assert len(found) == len(set(found))
    return set(found)


def walked(documents: list[bytes]) -> tuple[Values, set[int]]:
    """The same, by walking each document in plain Python."""
    found: Values = set()
    odd: set[int] = set()
    start = 0
    for row, document in enumerate(documents):
        try:
            assert int.from_bytes(document[:4], "little", signed=True) == len(document)
            values = list(elements(document, 0))
            names = [name for _, name, _, _ in values]
            assert len(names) == len({each.decode() for each in names})
        except (MalformedBSON, AssertionError, UnicodeDecodeError, IndexError):
            odd.add(row)
        else:
            found |= {(row, kind, name, at + start, stop + start) for kind, name, at, stop in values}
        start += len(document)
    return found, odd


def names_of(rng: random.Random, count: int) -> list[str]:
    """Names of many lengths, many of which begin alike."""
    beginnings = ["", "a", "field_", "sixteen bytes or", "a name that is longer than any window, ä"]
    return list({f"{rng.choice(beginnings)}{rng.randrange(3 * count)}" for _ in range(count)})


def value(rng: random.Random) -> Any:
    return rng.choice((1, 1.5, "text", "", None, True, [1, 2], {"a": 1}, bson.ObjectId(), b"\0", 2**40))


@pytest.mark.parametrize("names", [1, 7, 40, 300, 5000])
@pytest.mark.parametrize("shuffled", [False, True])
def test_all_values_are_found(names: int, shuffled: bool) -> None:
    rng = random.Random(names)
    known = names_of(rng, names)
    documents = []
    for _ in range(300):
        chosen = [each for each in known if rng.random() < min(0.5, 60 / names)]
        if shuffled:
            rng.shuffle(chosen)
        documents.append(bson.encode({each: value(rng) for each in chosen}))
    assert scanned(documents) == walked(documents)
    assert scanned(documents, max_names=3) == walked(documents)


@pytest.mark.parametrize("seed", range(8))
def test_broken_documents_are_odd_and_the_others_are_not(seed: int) -> None:
    rng = random.Random(seed)
    known = names_of(rng, 30)
    documents = []
    for _ in range(2000):
        document = bytearray(bson.encode({each: value(rng) for each in rng.sample(known, 4)}))
        for _ in range(rng.choice((0, 0, 1, 3))):
            document[rng.randrange(4, len(document))] = rng.choice(
                (0, 1, 2, 3, 4, 11, 97, 255, rng.randrange(256))
            )
        documents.append(bytes(document))
    (found, odd), (true, broken) = scanned(documents), walked(documents)
    assert odd == broken
    assert found == true
    assert 100 < len(odd) < 1900


def test_a_name_that_occurs_twice_is_odd_also_beyond_the_headers() -> None:
    def twice(first: bytes, second: bytes) -> bytes:
        body = b"\x10" + first + b"\0\1\0\0\0" + b"\x08" + second + b"\0\1"
        return (len(body) + 5).to_bytes(4, "little") + body + b"\0"

    many = bson.encode({str(number): 1 for number in range(3000)})
    documents = [many, twice(b"1", b"1"), twice(b"new", b"new"), twice(b"2999", b"2999"), twice(b"5", b"other")]
    assert scanned(documents)[1] == {1, 2, 3}
    assert scanned(documents) == walked(documents)


def test_what_is_outside_the_buffer_is_refused() -> None:
    assert native.library is not None
    at = np.array([0]), np.array([PADDING])
    for strings in (
        (b"short", *at, None, 1, 0, 0),
        (b"x" * 99, at[1], at[0], None, 1, 0, 0),
        (b"x" * 99, *at, None, 1, -1, 0),
        (b"x" * 99, *at, None, 1, PADDING, 1),
        (b"x" * 99, *at, at[1], 1, 0, 0),
    ):
        with pytest.raises(ValueError, match=r"outside|order"):
            native.library.strings(*strings)
    with pytest.raises(ValueError, match="order"):
        native.library.scattered(np.zeros(2), np.array([1, 0]), 2)
    assert native.library.offsets(bson.encode({"0": {}})[:-3], 0) is None
    assert native.library.documents(bson.encode({}), *at, None, 9)[2] == [0]
