"""Traces of segments from given messages."""

from __future__ import annotations

from engine.core import messages as msg
from engine.core.position import Position
from engine.core.store import Written
from engine.supervisor.traces import MAX_SEGMENTS, SegmentTrace, Traces


def work(began: float, ended: float, busy_s: float | None = None) -> msg.Work:
    return msg.Work(began, ended, ended - began if busy_s is None else busy_s)


def batch(generation: int, seq: int, decoding: msg.Work) -> msg.BatchReady:
    return msg.BatchReady(generation, seq, 0, 0, 10, 1, decoding=decoding)


def test_from_read_to_commit() -> None:
    done: list[SegmentTrace] = []
    traces = Traces(done.append)
    traces.heard(batch(1, 4, work(1, 2)), "s", 9, 2)
    traces.heard(batch(1, 4, work(3, 5)), "s", 9, 5)
    traces.heard(msg.SegmentCut(1, msg.Intent(4, None, Position()), "full"), "s", 9, 6)
    traces.heard(msg.Sealed("s", 1, 4, (), 70, 0, work(5, 8, 1), work(6, 8, 2)), None, 0, 8)
    traces.answered(Written("s", 1, "intent", 4, 8, 9))
    traces.heard(msg.Published("s", 1, 4, work(9, 10)), None, 0, 10)
    assert not done
    traces.answered(Written("s", 1, "commit", 4, 10, 11))
    (trace,) = done
    assert (trace.stream, trace.seq, trace.epoch, trace.events, trace.size) == ("s", 4, 9, 20, 70)
    assert trace.work == {
        "decode": work(1, 5, 3),
        "read": work(1, 6),
        "encode": work(5, 8, 1),
        "upload": work(6, 8),
        "intent": work(8, 9),
        "publish": work(9, 10),
        "commit": work(10, 11),
    }
    assert (trace.began, trace.ended) == (1, 11)


def test_an_interrupted_segment_leaves_nothing() -> None:
    done: list[SegmentTrace] = []
    traces = Traces(done.append)
    traces.heard(batch(1, 4, work(1, 2)), "s", 0, 2)
    traces.heard(batch(1, 5, work(1, 2)), None, 0, 2)  # outdated
    traces.heard(batch(2, 4, work(3, 4)), "s", 0, 4)
    traces.answered(Written("s", 2, "commit", 4, 5, 6))
    assert [each.work["decode"].began for each in done] == [3]
    assert not traces._open


def test_their_number_is_bounded() -> None:
    traces = Traces(lambda _: None)
    for seq in range(2 * MAX_SEGMENTS):
        traces.heard(batch(1, seq, work(1, 2)), "s", 0, 2)
    assert len(traces._open) == MAX_SEGMENTS
