"""How much of the oplog is left behind each stream, by simulated readings."""

from __future__ import annotations

import pytest

from engine.core.actions import Log
from engine.core.coordinator import Coordinator
from engine.core.messages import Idle, OplogSeen
from engine.core.oplog import Headroom
from engine.core.position import Position, make_time
from tests.core.answers import lease_lost
from tests.core.test_coordinator import READERS
from tests.core.test_health import reading

EVERY_S = 15


def seen(made: Coordinator, first: int, last: int, now: float) -> list[Log]:
    """A reading of the oplog, in seconds of cluster time."""
    message = OplogSeen(make_time(first, 1), make_time(last, 1))
    return [each for each in made.from_child(READERS[1], message, now) if isinstance(each, Log)]


def commit(made: Coordinator, seconds: int, now: float) -> None:
    """Stream ``shop.a`` commits a position, as an idle one does too."""
    time = make_time(seconds, 1)
    made.from_child(READERS[0], Idle(0, Position(f"82{time:016X}", time)), now)


def left(made: Coordinator, name: str = "shop.a") -> Headroom | None:
    return made.oplog.headroom(made.streams[name])


def test_headroom_is_unknown_until_the_window_is_and_for_streams_of_other_engines() -> None:
    made = reading()  # both stand at 100 s
    assert left(made) is None
    seen(made, 50, 150, 10.0)
    assert left(made) == Headroom(50.0, 0.5, None)
    seen(made, 40, 140, 11.0)  # an older answer of another reader
    assert made.oplog.window_s == 100.0
    assert left(made) == Headroom(50.0, 0.5, None)
    seen(made, 101, 201, 12.0)
    assert left(made) == Headroom(0.0, 0.0, None), "it is lost, and the figure never negative"
    lease_lost(made, "shop.a", 13.0)
    assert left(made) is None


def test_the_time_until_loss_follows_from_both_rates() -> None:
    """The oplog's first entry moves 2 s in a second; the stream moves 1 s, and later stands still."""
    made = reading()
    for t in range(0, 301, EVERY_S):
        commit(made, 1000 + t, 10.0 + t)
        seen(made, 400 + 2 * t, 1000 + t, 10.0 + t)
        if t < 60:
            assert left(made) == Headroom(600.0 - t, 1.0, None), "the rates are not known yet"
    assert left(made) == Headroom(300.0, 1.0, 300.0)
    for t in range(315, 331, EVERY_S):  # the sink is away
        seen(made, 400 + 2 * t, 1000 + t, 10.0 + t)
    found = left(made)
    assert found is not None
    assert found.left_s == 240.0
    assert found.lost_in_s == pytest.approx(240 / (2 - 300 / 330))


def test_an_oplog_whose_start_moves_in_steps() -> None:
    """A server truncates a long oplog rarely, by a hundredth: the rate is taken over several steps."""
    made = reading()
    start, day = 1_000_000, 86_400
    for t in range(0, 4 * day, 600):
        first = start + t // 6000 * 6000
        commit(made, first + day, 10.0 + t)
        seen(made, first, start + 7 * day + t, 10.0 + t)
    assert left(made, "shop.b") == Headroom(0.0, 0.0, 0.0)
    for t in range(4 * day, 4 * day + 3600, 600):
        seen(made, start + t // 6000 * 6000, start + 7 * day + t, 10.0 + t)
    found = left(made)
    assert found is not None
    assert found.lost_in_s == pytest.approx(day, rel=0.25)


def test_a_stream_that_falls_behind_is_reported_once_for_each_crossing() -> None:
    """It stands at 100 s at first; the window is always 100 s."""
    made = reading()
    told: list[tuple[str, str, object]] = []

    def pass_to(first: int, step: int = 1) -> None:
        at = made.oplog.window[0] >> 32 if made.oplog.window else first
        for each in range(at, first + 1, step):
            found = seen(made, each, each + 100, 10.0 + each)
            told.extend(
                (log.level, log.event, log.fields["share"]) for log in found if log.fields["stream"] == "shop.a"
            )

    pass_to(80)
    assert told == [], "a fifth is left, but nothing has been overwritten since this engine started"
    commit(made, 150, 100.0)
    pass_to(95)
    assert told == []
    pass_to(140)
    assert told == [("warning", "the oplog is running out behind a stream", 0.24)]
    assert made.oplog.is_short(made.streams["shop.a"])
    commit(made, 170, 200.0)
    pass_to(142)
    assert len(told) == 1, "it is about as short as before"
    commit(made, 180, 210.0)
    pass_to(143)
    assert told[1:] == [("info", "the oplog reaches back far enough again", 0.38)]
    pass_to(170)
    assert [level for level, _, _ in told] == ["warning", "info", "warning"]


def test_why_the_oplog_is_not_visible_is_said_once() -> None:
    made = reading()
    refused = OplogSeen(error="read the oplog's window: no rights. Grant the user read on the database local.")
    told = [
        each for now, reader in enumerate(READERS * 3) for each in made.from_child(reader, refused, 10.0 + now)
    ]
    assert [(each.level, each.event) for each in told if isinstance(each, Log)] == [
        ("warning", "oplog not visible")
    ]
    assert (made.oplog.error, made.oplog.window_s) == (refused.error, None)
    seen(made, 50, 150, 20.0)
    assert made.oplog.error is None
