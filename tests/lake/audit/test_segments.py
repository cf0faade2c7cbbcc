"""Which segments are missing, doubled or out of order, from keys and footers alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from engine.core.messages import Intent
from engine.core.naming import object_key, parts_of, split_id
from engine.core.position import Position
from engine.core.records import StreamRecord
from engine.lake.audit.catalogue import Entry
from engine.lake.audit.segments import Known, Segments, Window
from engine.lake.objects import Footer, LakeObject

START_S = 1_777_618_800
FIRST = START_S * 100 + 1
STREAM = "shop.orders"


def token(number: int, version: str = "2B04") -> str:
    """The token of an event, so many seconds after the start."""
    return f"82{(START_S + number << 32) + 1:016X}{version}2C01002B6E5A1004{number:032X}46{'5F6964':0<8}0004"


def entry(number: int, collection: str = "orders", stream: str = STREAM, **said: Any) -> Entry:
    """An object of the segment that has the events ``2 * number`` and ``2 * number + 1``."""
    key = object_key(stream, FIRST + number, "shop", collection, "collection")
    parts = parts_of(key)
    assert parts is not None
    facts = {"first_token": token(2 * number), "last_token": token(2 * number + 1), "objects": 1, "rows": 2}
    footer = Footer(**{"stream": stream, "seq": FIRST + number} | facts | said)  # type: ignore[arg-type]
    return Entry(LakeObject(key, parts, 100), footer=footer)


def record(seq: int, rows: int = 0, intents: Iterable[int] = ()) -> StreamRecord:
    outstanding = tuple(Intent(FIRST + each, None, Position(), (), 0) for each in intents)
    return StreamRecord(seq=FIRST + seq, rows=rows, intents=outstanding)


def found(
    *segments: list[Entry], known: Known | None = None, stream: str = STREAM, from_start: bool = True
) -> Sequence[str]:
    """The kinds of what is found."""
    check = Segments(stream, known, from_start=from_start)
    kinds: list[str] = [each.kind for segment in segments for each in check.check(segment)]
    return kinds + [each.kind for each in check.end()]


def test_a_whole_stream() -> None:
    segments = [[entry(n)] for n in range(5)]
    assert found(*segments) == []
    assert found(*segments, known=Known(record(4, 10), record(4, 10))) == []


@pytest.mark.parametrize("gone", [0, 2])
def test_a_segment_is_missing(gone: int) -> None:
    segments = [[entry(n)] for n in range(5) if n != gone]
    assert found(*segments) == ["segment_missing"]


def test_the_last_segments_are_missing_if_they_are_committed() -> None:
    segments = [[entry(n)] for n in range(3)]
    assert found(*segments, known=Known(record(4, 6), record(4, 6))) == ["segment_missing"]
    assert found(known=Known(record(4, 10), record(4, 10))) == ["segment_missing"]


def test_rows_are_missing_if_more_were_committed() -> None:
    """The beginning of a stream is not known otherwise: its numbers begin with the time of its start."""
    segments = [[entry(n)] for n in range(100, 103)]
    assert found(*segments, known=Known(record(102, 206), record(102, 206))) == ["rows_lost"]


def test_a_new_stream_without_events_misses_nothing() -> None:
    assert found(known=Known(record(-1), record(-1))) == []


def test_what_was_in_flight_while_the_lake_was_listed_may_be_there_or_not() -> None:
    known = Known(record(2, 6), record(4, 10, intents=[5]))
    assert found(*([entry(n)] for n in (0, 1, 2)), known=known) == []
    assert found(*([entry(n)] for n in (0, 1, 2, 4, 5)), known=known) == []
    assert found(*([entry(n)] for n in (0, 1, 2, 6)), known=known) == ["segment_beyond"]


def test_a_stream_without_a_record() -> None:
    assert found([entry(0)], [entry(1)], known=Known()) == ["no_record"]
    split = split_id("shop", "orders", "1f3a5c7e", 1)
    places = {"first_token": "0000000000000001:05", "last_token": "0000000000000002:07"}
    assert found([entry(0, stream=split, **places)], known=Known(), stream=split) == []


def test_objects_of_a_segment_are_counted() -> None:
    one, two = entry(0, objects=2), entry(0, "other", objects=2)
    assert found([one, two]) == []
    assert found([one]) == ["object_missing"]
    assert found([one, two, entry(0, "third", objects=2)]) == ["object_doubled"]
    assert found([entry(0, objects=None), entry(0, "other", objects=None)]) == []


def test_an_object_of_another_segment() -> None:
    assert found([entry(0)], [entry(1), entry(1, "other", seq=FIRST)]) == ["misplaced"]
    assert found([entry(0)], [entry(1), entry(1, "other", stream=STREAM)]) == ["object_doubled"]


def test_an_object_in_two_shards() -> None:
    one = entry(0)
    key = f"0001/{one.object.key}"
    parts = parts_of(key)
    assert parts is not None
    assert found([one, Entry(LakeObject(key, parts, 100), footer=one.footer)]) == ["object_doubled"]


def test_tokens_ascend() -> None:
    back = entry(2, first_token=token(3), last_token=token(9))
    assert found([entry(0)], [entry(1)], [back]) == ["token_order"]
    assert found([entry(0, first_token=token(3))]) == ["token_order"]


def test_tokens_of_another_version_are_compared_by_their_order() -> None:
    """A server was upgraded in between; at one time, the order cannot be known."""
    same = entry(1, first_token=token(1, "2B02"), last_token=token(3, "2B02"))
    later = entry(1, first_token=token(2, "2B02"), last_token=token(3, "2B02"))
    back = entry(1, first_token=token(0, "2B02"), last_token=token(3, "2B02"))
    assert found([entry(0)], [later]) == []
    assert found([entry(0)], [back]) == ["token_order"]
    assert len(found([entry(0)], [same])) <= 1


def test_a_segment_without_events_ends_where_it_is_told_to() -> None:
    empty = entry(1, first_token="", last_token=token(2), rows=0)
    assert found([entry(0)], [empty], [entry(2)]) == []
    assert found([entry(1)], [entry(2, first_token="", last_token=token(1), rows=0)], from_start=False) == [
        "token_order"
    ]


def test_a_rewind_is_told_and_is_no_difference() -> None:
    check = Segments(STREAM, None, from_start=True)
    again = [entry(n, first_token=token(2 * n - 4), last_token=token(2 * n - 3), line=1) for n in (3, 4)]
    for each in [*(entry(n) for n in range(3)), *again]:
        assert list(check.check([each])) == []
    assert check.rewinds == [FIRST + 3]
    assert [each.kind for each in check.check([entry(5, first_token=token(30), last_token=token(31))])] == [
        "token_order"
    ]


def test_a_stream_that_started_over_is_no_gap() -> None:
    """Its number says that it started after the last event."""
    later = entry(100 * 60, first_token=token(60), last_token=token(61))
    assert found([entry(0)], [later]) == []
    early = entry(100 * 60, first_token=token(200), last_token=token(201))
    assert found([entry(0, last_token=token(100))], [early]) == ["segment_missing"]


def test_a_window() -> None:
    entries = [entry(10)]  # 20 and 21 seconds after the start
    for since, until, is_in in ((21, None, True), (22, None, False), (None, 20, False), (None, 21, True)):
        window = Window(*(START_S + each if each is not None else None for each in (since, until)))
        assert window.has(entries) == is_in
    assert Window(START_S + 10**6).has([Entry(entries[0].object)])
