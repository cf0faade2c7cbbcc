"""How the coordinator shares its streams: what it announces, takes, gives up, and how it makes way."""

from __future__ import annotations

import random
from typing import Any

import msgspec

from engine.core.actions import Acquire, Action, Announce, Exit, Leave, Log, Release, Send
from engine.core.coordinator import Coordinator
from engine.core.fleet import LOOK_EVERY_S
from engine.core.generations import Generation, Generations, encode_generations
from engine.core.lifecycle import Lease, Stage
from engine.core.messages import Assign, Finish, Finished, ReaderReady, Started, Stop, Surveyed
from engine.core.position import Position, make_time
from engine.core.sharing import Member
from engine.core.specs import SplitSpec
from engine.core.store import FleetSeen, LeaseDenied
from tests.core import test_coordinator as base
from tests.core.answers import taken

ME, OTHER = "host/here/1/5", "other/there/2/7"
GENERATION = Generation(3, "selection", tuple(base.SPECS))
END = Position(f"82{make_time(90, 1):016X}", make_time(90, 1))


def coordinator(**settings: Any) -> Coordinator:
    changed = msgspec.structs.replace(
        base.SETTINGS, **{"fleet": GENERATION, "version": "1.2", "drain_timeout_s": 5.0} | settings
    )
    made = Coordinator(changed, base.SPECS, random.Random(1))
    made.start(0.0)
    return made


def looked(actions: list[Action]) -> list[Member]:
    return [each.member for each in actions if isinstance(each, Announce)]


def asked(actions: list[Action]) -> set[str]:
    return {each.stream for each in actions if isinstance(each, Acquire)}


def released(actions: list[Action]) -> set[str]:
    return {name for each in actions if isinstance(each, Release) for name in each.streams}


def sees(made: Coordinator, now: float, *others: Member, document: str | None = None) -> list[Action]:
    members = {f"{OTHER}{number}": each for number, each in enumerate(others)}
    texts = {name: msgspec.json.encode(each).decode() for name, each in members.items()}
    return made.from_store(FleetSeen(ME, texts, document), now)


def member(**traits: Any) -> Member:
    return Member(selection="selection", **{"room": 2, "ready": True} | traits)


def reading(**settings: Any) -> Coordinator:
    """An engine that is alone, and reads both streams."""
    made = coordinator(**settings)
    made.tick(0.1)
    sees(made, 0.2)
    made.tick(0.3)
    base.ready(made, make_time(100, 1))
    for spec in base.SPECS:
        base.surveyed(made, taken(made, spec.stream, base.record(spec, make_time(90, 1)), 1.0))
    for reader, spec in zip(base.READERS, base.SPECS, strict=True):
        made.from_child(reader, Started(made.streams[spec.stream].generation, None), 1.5)
    assert all(each.stage is Stage.READING for each in made.streams.values())
    return made


def test_nothing_is_asked_for_before_the_others_have_been_seen() -> None:
    made = coordinator()
    actions = made.tick(0.1)
    (announced,) = looked(actions)
    assert announced == Member("1.2", "selection", 3, room=2)
    assert not asked(actions)
    assert not looked(made.tick(5.0)), "one answer is awaited at a time"
    sees(made, 5.1)
    assert asked(made.tick(5.2)) == {"shop.a", "shop.b"}


def test_two_engines_ask_for_different_streams() -> None:
    made = coordinator()
    made.tick(0.1)
    sees(made, 0.2, member(holds={"shop.a": True}, room=1))
    assert asked(made.tick(0.3)) == {"shop.b"}
    assert made.streams["shop.a"].held_by == f"{OTHER}0"


def test_engines_of_other_selections_are_not_counted() -> None:
    made = coordinator()
    made.tick(0.1)
    sees(made, 0.2, Member(selection="another", holds={"shop.a": True}, room=9))
    assert asked(made.tick(0.3)) == {"shop.a", "shop.b"}


def test_alone_it_looks_seldom_and_in_company_often() -> None:
    made = reading()
    assert not looked(made.tick(9.0))
    assert looked(made.tick(10.2))
    sees(made, 10.3, member(holds={}, ready=False))
    assert looked(made.tick(10.4 + LOOK_EVERY_S))


def test_a_stream_is_drained_before_it_is_given_up() -> None:
    made = reading()
    made.tick(10.2)
    actions = sees(made, 10.3, member())
    (finish,) = [each for each in actions if isinstance(each, Send) and isinstance(each.message, Finish)]
    assert not released(actions)
    reader = finish.child
    stream = made.readers.stream_of(reader)
    assert stream is not None
    assert not [each for each in sees(made, 10.4, member()) if isinstance(each, Send)], "it is asked once"
    generation = stream.generation
    actions = made.from_child(reader, Finished(generation, END), 11.0)
    assert released(actions) == {stream.name}
    assert (stream.life.lease, stream.stage) == (Lease.FREE, Stage.WAITING)
    assert stream.generation > generation
    # The other has it: its reader is not needed.
    actions = sees(made, 12.0, member(holds={stream.name: True}, room=1))
    assert [each.child for each in actions if isinstance(each, Send) and isinstance(each.message, Stop)] == [
        reader
    ]
    exited = made.child_exited(reader, 0, 12.5)
    assert not [each for each in exited if isinstance(each, Log)]
    assert made.children[reader].deaths == 0
    # The other is gone: it takes the stream back, with a reader that is started again.
    made.tick(13.0)
    sees(made, 13.1)
    actions = made.tick(13.2)
    assert asked(actions) == {stream.name}
    assert made.children[reader].alive
    made.from_child(reader, ReaderReady("rs0", "7", make_time(100, 1)), 13.5)
    fields = base.record(stream.spec, make_time(95, 1))  # type: ignore[arg-type]
    (assign,) = base.assigned(base.surveyed(made, taken(made, stream.name, fields, 13.6), now=14.0))
    assert isinstance(assign, Assign)
    assert assign.start is not None
    assert assign.start.time == make_time(95, 1)


def test_what_takes_too_long_to_drain_is_dropped() -> None:
    made = reading()
    made.tick(10.2)
    actions = sees(made, 10.3, member())
    (finish,) = [each for each in actions if isinstance(each, Send) and isinstance(each.message, Finish)]
    stream = made.readers.stream_of(finish.child)
    assert stream is not None
    assert not released(made.tick(14.0))
    assert released(made.tick(15.4)) == {stream.name}
    assert stream.stage is Stage.WAITING


def test_a_stream_that_is_not_being_read_is_given_up_at_once() -> None:
    made = coordinator()
    made.tick(0.1)
    sees(made, 0.2)
    made.tick(0.3)
    for spec in base.SPECS:
        taken(made, spec.stream, base.record(spec, make_time(90, 1)), 1.0)
    made.tick(10.2)
    assert len(released(sees(made, 10.3, member()))) == 1


def test_a_stream_that_failed_here_is_left_to_others() -> None:
    made = reading()
    made.from_child(base.READERS[0], base.failed("fatal", made, "shop.a"), 4.0)
    (announced,) = looked(made.tick(10.2))
    assert announced.holds == {"shop.b": True}
    assert "shop.a" in announced.cannot
    sees(made, 10.3, member(holds={"shop.a": True}, room=1))
    assert not asked(made.tick(11.0))


def test_what_nobody_can_take_is_told_once() -> None:
    made = coordinator(capacity=1)
    told = []
    for now in range(0, 100, 2):
        actions = made.tick(now + 0.1)
        told += sees(made, now + 0.2, member(room=0, cannot={})) if looked(actions) else []
        for stream in asked(actions):
            taken(made, stream, base.record(made.streams[stream].spec, make_time(90, 1)), now + 0.3)  # type: ignore[arg-type]
    lines = [each for each in told if isinstance(each, Log) and "no engine can take" in each.event]
    assert len(lines) == 1
    (unowned,) = made.fleet.unowned
    made.tick(103.0)
    assert made.health.state_of(made.streams[unowned]) == "stalled"
    assert made.streams[unowned].trouble is not None
    # Another engine that can take it has come.
    sees(made, 104.0, member(room=0), member(holds={unowned: True}, room=1))
    assert made.streams[unowned].trouble is None


def test_an_engine_that_was_slower_looks_again_at_once() -> None:
    made = coordinator()
    made.tick(0.1)
    sees(made, 0.2, member(holds={}, room=0))
    assert asked(made.tick(0.3)) == {"shop.a", "shop.b"}
    made.from_store(LeaseDenied("shop.a", f"{OTHER}0", 30.0), 0.4)
    assert looked(made.tick(0.5))


def test_it_makes_way_for_another_selection() -> None:
    made = reading()
    made.tick(10.2)
    newer = Generation(4, "another", tuple(base.SPECS), ("selection",))
    actions = sees(made, 10.3, document=encode_generations(Generations((newer,))))
    assert made.draining
    assert len([each for each in actions if isinstance(each, Send) and isinstance(each.message, Finish)]) == 2
    assert not made.tick(11.0) or not looked(made.tick(11.0))
    for reader, spec in zip(base.READERS, base.SPECS, strict=True):
        actions = made.from_child(reader, Finished(made.streams[spec.stream].generation, END), 11.5)
    assert [each.code for each in actions if isinstance(each, Exit)] == [0]
    assert released(actions) == {"shop.a", "shop.b"}
    assert Leave() in actions
    assert not looked(made.tick(30.0)), "what was taken back is not announced again"


def test_selections_that_do_not_meet_it_are_left_alone() -> None:
    made = reading()
    made.tick(10.2)
    beside = Generation(4, "another", ())
    sees(made, 10.3, document=encode_generations(Generations((GENERATION, beside))))
    assert not made.draining


def test_splits_wait_until_every_stream_is_captured_by_anyone() -> None:
    made = coordinator(pool=1)
    made.load([SplitSpec("split", "shop", "a")], {})
    made.tick(0.1)
    sees(made, 0.2, member(holds={"shop.a": False, "shop.b": False}, room=0))
    assert "split" not in asked(made.tick(0.3))
    made.tick(2.4)
    actions = sees(made, 2.5, member(holds={"shop.a": True, "shop.b": True}, room=0))
    assert "split" in asked(actions)


def test_a_survey_that_ends_after_a_drain_has_begun() -> None:
    """One stream is being surveyed, another is read: the drain finishes the first, and waits for the other."""
    made = base.coordinator()
    base.ready(made, make_time(100, 1))
    fields = [base.record(spec, make_time(90, 1)) for spec in base.SPECS]
    base.surveyed(made, taken(made, "shop.a", fields[0], 2.0))
    made.from_child(base.READERS[0], Started(made.streams["shop.a"].generation, None), 2.2)
    taken(made, "shop.b", fields[1], 2.3)
    generation = made.streams["shop.b"].generation
    made.shut_down(3.0)
    made.from_child(base.WRITER, Surveyed("shop.b", generation, None), 3.1)
    made.from_child(base.WRITER, Surveyed("shop.b", generation, "an object"), 3.1)
    actions = made.from_child(base.READERS[0], Finished(made.streams["shop.a"].generation, END), 3.2)
    assert [each.code for each in actions if isinstance(each, Exit)] == [0]
