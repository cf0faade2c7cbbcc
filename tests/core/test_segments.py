"""Cuts fall by rows, bytes, age and, in a replay, by token order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.messages import Intent, ObjectName
from engine.core.position import Position, make_time
from engine.core.segments import Limits, SegmentEnd, Segmenter

LIMITS = Limits(rows=10, size=1000, age_s=5.0)


def token(number: int) -> str:
    return f"82{make_time(number // 10, number % 10):016x}"


@dataclass
class Numbered:
    """Events identified by number, all of the same size."""

    numbers: Sequence[int]
    size: int = 1
    ends_invalidated: bool = False

    def __len__(self) -> int:
        return len(self.numbers)

    def token_at(self, row: int) -> str:
        return token(self.numbers[row])

    @property
    def offsets(self) -> Sequence[int]:
        return range(0, self.size * len(self.numbers) + 1, self.size)


def intent(seq: int, last: int) -> Intent:
    return Intent(seq, token(last), Position(token(last), 0), (ObjectName(f"key-{seq}"),))


def consume(
    segmenter: Segmenter, events: Numbered, now: float = 0.0, chunk: int = 100
) -> list[tuple[list[int], SegmentEnd | None]]:
    """Take all events; what each step took, and the segment that it ended, if any."""
    taken = []
    row = 0
    while row < len(events):
        stop = segmenter.reach(events, row, chunk)
        end = segmenter.take(events, row, stop, now)
        assert stop > row or end is not None
        taken.append((list(events.numbers[row:stop]), end))
        row = stop
    return taken


def test_rows_cut() -> None:
    taken = consume(Segmenter(LIMITS, 1), Numbered(range(25)))
    assert [len(numbers) for numbers, _ in taken] == [10, 10, 5]
    ends = [end.intent for _, end in taken if end]
    assert [(end.seq, end.first_token, end.end.token, end.rows) for end in ends] == [
        (1, token(0), token(9), 10),
        (2, token(10), token(19), 10),
    ]


def test_bytes_cut_after_the_event_that_reaches_the_limit() -> None:
    taken = consume(Segmenter(Limits(1000, 250, 5.0), 1), Numbered(range(7), size=100))
    assert [len(numbers) for numbers, _ in taken] == [3, 3, 1]


def test_one_event_is_always_taken() -> None:
    taken = consume(Segmenter(Limits(1000, 10, 5.0), 1), Numbered(range(3), size=100))
    assert [len(numbers) for numbers, end in taken if end] == [1, 1, 1]


def test_age_cuts_from_the_first_event() -> None:
    segmenter = Segmenter(LIMITS, 1)
    assert segmenter.deadline() is None
    consume(segmenter, Numbered([1]), now=3.0)
    consume(segmenter, Numbered([2]), now=7.0)
    assert segmenter.deadline() == 8.0
    assert segmenter.expired(7.9) is None
    end = segmenter.expired(8.0)
    assert end is not None
    assert end.intent.rows == 2
    assert not segmenter.is_open


def test_an_empty_segment_is_not_cut() -> None:
    segmenter = Segmenter(LIMITS, 1)
    assert segmenter.flush("finish") is None
    assert segmenter.expired(1e9) is None


def test_a_replay_cuts_at_the_same_places_and_knows_its_objects() -> None:
    segmenter = Segmenter(LIMITS, 4, [intent(4, 2), intent(5, 40)])
    taken = consume(segmenter, Numbered(range(50)), chunk=7)
    ends = [(end.intent.seq, end.intent.end.token, end.intent.objects) for _, end in taken if end]
    assert ends[:2] == [(4, token(2), (ObjectName("key-4"),)), (5, token(40), (ObjectName("key-5"),))]
    assert not segmenter.replaying


def test_a_replay_cuts_even_if_its_last_event_does_not_reappear() -> None:
    segmenter = Segmenter(LIMITS, 1, [intent(1, 5)])
    taken = consume(segmenter, Numbered([1, 2, 8]))
    assert [(numbers, bool(end)) for numbers, end in taken] == [([1, 2], True), ([8], False)]


def test_a_replay_without_events_still_makes_its_segment() -> None:
    segmenter = Segmenter(LIMITS, 1, [intent(1, 5)])
    assert segmenter.scanned(token(4)) is None
    end = segmenter.scanned(token(5))
    assert end is not None
    assert (end.intent.rows, end.intent.first_token, end.intent.end.token) == (0, None, token(5))


def test_a_replay_is_cut_by_nothing_else() -> None:
    segmenter = Segmenter(LIMITS, 1, [intent(1, 90)])
    consume(segmenter, Numbered(range(50)))
    assert segmenter.expired(1e9) is None
    assert segmenter.flush("memory") is None
    assert segmenter.deadline() is None


def test_until_ends_before_the_first_later_event() -> None:
    segmenter = Segmenter(LIMITS, 1, until=make_time(0, 5))
    events = Numbered(range(3, 9))
    assert segmenter.reach(events, 0, 100) == 3
    segmenter.take(events, 0, 3, 0.0)
    assert segmenter.reach(events, 3, 100) == 3


def test_an_invalidate_is_known_only_at_the_end() -> None:
    segmenter = Segmenter(LIMITS, 1)
    events = Numbered(range(4), ends_invalidated=True)
    segmenter.take(events, 0, 2, 0.0)
    assert not segmenter.end.after_invalidate
    segmenter.take(events, 2, 4, 0.0)
    assert segmenter.end.after_invalidate


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=8),
    st.lists(st.integers(1, 7), min_size=1, max_size=40),
    st.data(),
)
def test_any_replay_makes_the_same_segments(replies: list[int], chunks: list[int], data: st.DataObject) -> None:
    """Each segment gets the same events, however they arrive the second time."""
    numbers = list(range(sum(replies)))
    first = Segmenter(LIMITS, 1)
    made = [end.intent for _, end in consume(first, Numbered(numbers)) if end]
    again = Segmenter(LIMITS, 1, made)
    got: dict[int, list[int]] = {}
    row = 0
    for size in replies:
        events = Numbered(numbers[row : row + size])
        at = 0
        while at < size:
            seq = again.seq
            stop = again.reach(events, at, data.draw(st.sampled_from(chunks)))
            again.take(events, at, stop, 0.0)
            got.setdefault(seq, []).extend(events.numbers[at:stop])
            at = stop
        again.scanned(token(numbers[row + size - 1]))
        row += size
    for each in made:
        assert got[each.seq] == list(range((each.seq - 1) * 10, each.seq * 10))


def test_a_replay_must_start_at_the_next_segment() -> None:
    with pytest.raises(AssertionError, match="starts at the next segment"):
        Segmenter(LIMITS, 1, [intent(2, 5)])
