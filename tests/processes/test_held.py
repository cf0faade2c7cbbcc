"""Which events are held back, for how long, and which of them settle the types."""

from __future__ import annotations

import bson
import numpy as np
import pytest

from engine.processes.held import ENOUGH_EVENTS, MAX_BYTES, Held
from engine.source.reply import Reply

EMPTY = Reply(b"", np.zeros(1, np.int64), "")


def reply(*numbers: int, text: str = "") -> Reply:
    return Reply.of_documents([bson.encode({"n": number, "text": text}) for number in numbers], EMPTY)


def numbers(events: Reply) -> list[int]:
    found = zip(events.offsets[:-1], events.offsets[1:], strict=True)
    return [bson.decode(events.data[begin:end])["n"] for begin, end in found]


def test_events_of_all_replies_count_together() -> None:
    held = Held(30.0)
    assert held.deadline() is None
    held.add(reply(1, 2, 3), 1, now=5.0)
    for _ in range(3):
        held.add(reply(), 0, now=6.0)
    held.add(reply(4), 0, now=7.0)
    assert (held.since, held.deadline()) == (5.0, 35.0)
    assert [numbers(part) for part in held.parts()] == [[2, 3, 4]]
    assert [(len(each), row) for each, row in held.release()] == [(3, 1), (1, 0)]
    assert held.since is None


def test_events_are_held_until_there_are_enough() -> None:
    held = Held(30.0)
    held.add(reply(1), 0, now=0.0)
    assert (held.is_due(29.0), held.is_due(30.0)) == (False, True)
    held.add(reply(*range(ENOUGH_EVENTS - 2)), 0, now=1.0)
    assert not held.is_due(1.0)
    held.add(reply(1), 0, now=1.0)
    assert held.is_due(1.0)


@pytest.mark.parametrize("end", ["is_last", "is_partial"])
def test_a_reply_that_is_awaited_is_not_held(end: str) -> None:
    last = reply(1)
    setattr(last, end, True)
    held = Held(30.0)
    held.add(last, 0, now=0.0)
    assert held.is_due(0.0)


def test_a_large_reply_is_not_copied() -> None:
    large = reply(2, 3, text="x" * MAX_BYTES)
    held = Held(30.0)
    held.add(reply(1), 0, now=0.0)
    assert held.parts() == []
    held.add(large, 1, now=0.0)
    assert held.is_due(0.0)
    first, second = held.parts()
    assert first.data is large.data
    assert (numbers(first), numbers(second)) == ([3], [1])
