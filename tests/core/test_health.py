"""The problems that the coordinator reports for its streams, when, and how often."""

from __future__ import annotations

from typing import Any

from engine.core.actions import Log
from engine.core.coordinator import Coordinator
from engine.core.ledger import first_segment
from engine.core.messages import BatchReady, Failed, Heartbeat, Idle, SlabRequest, Started, WriterReady
from engine.core.position import Position, make_time
from engine.core.problems import REPEAT_EVERY_S
from tests.core.answers import denied, store_seen, taken
from tests.core.test_coordinator import READERS, SPECS, WRITER, coordinator, ready, surveyed

START = Position(time=make_time(100, 1))
HELD_UP, RESUMED = "streams are held up", "streams resumed"


def reading() -> Coordinator:
    """Two streams that are being read, at time 10.0."""
    made = coordinator(hang_timeout_s=1000.0)
    ready(made, make_time(100, 0))
    for spec, reader in zip(SPECS, READERS, strict=True):
        surveyed(made, taken(made, spec.stream, {}, 2.0))
        made.from_child(reader, Started(0, START), 3.0)
    assert not live(made, 10.0)
    return made


def live(made: Coordinator, now: float, **beats: dict[str, Any]) -> list[Log]:
    """Heartbeats of all children (overridden by ``reader_0``, ...) and a tick; what is logged."""
    for child in (*READERS, WRITER):
        beat = beats.get(str(child).replace("-", "_"), {})
        made.from_child(child, Heartbeat(int(now), "working", 0.0, **beat), now)
    return logs(made, now)


def logs(made: Coordinator, now: float) -> list[Log]:
    found = [each for each in made.tick(now) if isinstance(each, Log)]
    return [each for each in found if each.event in (HELD_UP, RESUMED)]


def states(made: Coordinator) -> list[str]:
    return [made.health.state_of(stream) for stream in made.streams.values()]


def problems(made: Coordinator, now: float) -> list[str]:
    return [stream.problem.text(now) if stream.problem else "" for stream in made.streams.values()]


def test_mongodb_does_not_answer() -> None:
    made = reading()
    assert states(made) == ["reading", "reading"]
    assert not live(made, 12.0, reader_0={"unanswered_s": 2.0}), "a getMore may take its time"
    (told,) = live(made, 16.0, reader_0={"unanswered_s": 6.0})
    assert (told.level, told.event) == ("warning", HELD_UP)
    assert told.fields == {"streams": ["shop.a"], "problem": "MongoDB has not answered for 6 s"}
    assert states(made) == ["stalled", "reading"]
    assert problems(made, 17.0) == ["MongoDB has not answered for 7 s", ""]
    assert made.streams["shop.a"].status == "running", "it is only reported"
    (told,) = live(made, 20.0)
    assert (told.level, told.event, told.fields) == ("info", RESUMED, {"streams": ["shop.a"], "after_s": 10.0})
    assert states(made) == ["reading", "reading"]


def test_a_lasting_problem_is_reported_periodically_and_once_for_all_streams() -> None:
    made = reading()
    told = []
    for second in range(int(3 * REPEAT_EVERY_S)):
        waits = {"unanswered_s": 6.0 + second}
        told += live(made, 16.0 + second, reader_0=waits, reader_1=waits)
    assert len(told) == 3
    assert told[0].fields["streams"] == ["shop.a", "shop.b"]


def test_mongodb_refuses() -> None:
    """The text may change with each attempt; the time of the first one counts."""
    made = reading()
    assert not live(made, 11.0, reader_1={"error": "read: refused"}), "it may be brief"
    (told,) = live(made, 14.0, reader_1={"error": "read: no server"})
    assert told.fields["problem"] == "read: no server"
    assert problems(made, 14.0) == ["", "read: no server"]
    assert not live(made, 16.0, reader_1={"error": "read: refused"})
    (told,) = live(made, 20.0)
    assert told.fields["after_s"] == 9.0


def test_a_sink_that_does_not_answer_holds_up_the_streams_that_wait_for_it() -> None:
    made = reading()
    (reader, _), seq = READERS, first_segment(START)
    made.from_child(reader, SlabRequest(0, seq, 100), 10.0)
    made.from_child(reader, BatchReady(0, seq, 0, 100, 1, 100), 10.0)
    live(made, 16.0, writer_0={"unanswered_s": 6.0})
    assert problems(made, 16.0) == ["the sink has not answered for 6 s", ""]


def test_a_failed_segment_is_a_problem_until_the_next_commit() -> None:
    made = reading()
    failed = Failed("transient", "publish x", "503", "", "shop.a", 0)
    made.from_child(WRITER, failed, 10.0)
    assert [each.fields["problem"] for each in live(made, 13.0)] == ["publish x: 503"]
    made.from_child(READERS[0], Started(1, None), 14.0)
    live(made, 14.0)
    assert states(made) == ["stalled", "reading"], "it is being read again, but has committed nothing yet"
    end = make_time(101, 1)
    made.from_child(READERS[0], Idle(1, Position(f"82{end:016X}", end)), 15.0)
    assert [each.event for each in live(made, 15.0)] == [RESUMED]
    assert states(made) == ["reading", "reading"]


def test_the_state_store_does_not_answer() -> None:
    made = reading()
    store_seen(made, 6.0, "", 16.0)
    (told,) = live(made, 16.0)
    assert told.fields == {
        "streams": ["shop.a", "shop.b"],
        "problem": "the state store has not answered for 6 s",
    }
    store_seen(made, 0.0, "renew: connection refused", 20.0)
    assert not live(made, 20.0)
    assert problems(made, 20.0) == ["renew: connection refused"] * 2
    store_seen(made, 0.0, "", 21.0)
    (told,) = live(made, 21.0)
    assert (told.event, told.fields["after_s"]) == (RESUMED, 11.0)


def test_a_process_without_heartbeats() -> None:
    made = reading()
    live(made, 15.0)
    for second in range(16, 24):
        logs(made, float(second))
    silent = [f"{reader} has not been heard from, at 'working' for 8 s" for reader in READERS]
    assert problems(made, 23.0) == silent
    assert [each.event for each in logs(made, 300.0)] == [RESUMED], "this process itself was paused"
    assert problems(made, 300.0) == ["", ""]


def test_an_outage_is_one_problem_whatever_form_it_takes() -> None:
    """A server that does not answer, then an error, then a reader that dies of it and cannot connect again."""
    made = reading()
    told = live(made, 16.0, reader_0={"unanswered_s": 6.0})
    told += live(made, 17.0, reader_0={"error": "read: timed out"})
    told += live(made, 18.0, reader_0={"error": "read: timed out"})
    made.child_exited(READERS[0], 1, 18.5)
    told += live(made, 19.0)
    assert [each.event for each in told] == [HELD_UP]
    assert states(made) == ["stalled", "reading"]


def test_a_reader_that_cannot_connect_at_the_start_is_held_up_until_it_can() -> None:
    """It is silent while it connects; then it says why it could not, ends, and is replaced."""
    made = coordinator(hang_timeout_s=1000.0)
    made.from_child(WRITER, WriterReady(), 1.0)
    told = [each for second in range(2, 13) for each in logs(made, float(second))]
    assert {each.event for each in told} == {HELD_UP}
    for reader in READERS:
        made.from_child(reader, Failed("transient", "connect to MongoDB", "timed out", ""), 13.0)
        made.child_exited(reader, 1, 13.0)
    told = [each for second in range(13, 20) for each in logs(made, float(second))]
    assert told == [], "neither over nor new"


def test_a_process_that_dies_and_fails_to_restart() -> None:
    made = reading()
    made.child_exited(READERS[0], -9, 20.0)
    live(made, 22.5)
    assert problems(made, 22.5) == ["reader-0 ended by signal 9", ""]
    made.from_child(READERS[0], Failed("transient", "connect", "nobody there", ""), 23.0)
    made.child_exited(READERS[0], 1, 23.0)
    live(made, 24.0)
    assert problems(made, 24.0) == ["connect: nobody there", ""]
    assert states(made) == ["stalled", "reading"]


def test_a_standby_that_could_take_over_and_one_that_could_not() -> None:
    made = coordinator()
    denied(made, "shop.a", "other", 1.0, 0.5)
    assert states(made) == ["starting", "starting"], "its processes are not ready yet"
    ready(made, make_time(100, 0))
    assert states(made) == ["standby", "starting"]
    made.child_exited(READERS[0], -9, 2.0)
    assert states(made)[0] == "starting"
    taken(made, "shop.a", {}, 3.0)
    assert states(made)[0] == "starting"


def test_a_stream_that_has_failed_has_an_error_and_no_problem() -> None:
    made = reading()
    made.from_child(READERS[0], Failed("fatal", "read", "a view", "", "shop.a", 0), 10.0)
    assert not live(made, 30.0)
    assert states(made) == ["failed", "reading"]
    assert problems(made, 30.0) == ["", ""]
