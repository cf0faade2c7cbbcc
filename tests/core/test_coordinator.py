"""States that the coordinator refuses to continue from, and what each of them stops."""

from __future__ import annotations

import random
from collections.abc import Container, Sequence
from typing import Any

import msgspec
import pytest

from engine.core import records
from engine.core.actions import Acquire, Action, Child, Exit, Kill, Log, Release, Renew, Send, Spawn, Write
from engine.core.backfill import END
from engine.core.coordinator import Coordinator
from engine.core.ledger import first_segment
from engine.core.messages import (
    Abandon,
    Assign,
    BatchReady,
    Failed,
    Finished,
    Intent,
    Published,
    ReaderReady,
    Replaced,
    Sealed,
    SegmentCut,
    SlabFreed,
    SlabRequest,
    Started,
    Survey,
    Surveyed,
    Unassign,
    WriterReady,
)
from engine.core.naming import object_key
from engine.core.position import Position, make_time
from engine.core.restarts import RetryPolicy
from engine.core.specs import BackfillSpec, SplitSpec, StreamSpec
from engine.core.stream import Settings
from engine.errors import FailureKind
from tests.core.answers import lease_lost, taken, written

SPECS = [StreamSpec(f"shop.{name}", "collection", "shop", (name,)) for name in ("a", "b")]
READERS = [Child("reader", number) for number in range(2)]
WRITER = Child("writer", 0)


SETTINGS = Settings(
    writers=1,
    arena_size=2**20,
    lease_ttl_s=30.0,
    retry=RetryPolicy(5, 0.1, 1.0),
    hang_timeout_s=60.0,
    drain_timeout_s=10.0,
    start_at="now",
    on_history_lost="fail",
    sink="s3://lake",
)


def coordinator(**settings: Any) -> Coordinator:
    made = Coordinator(msgspec.structs.replace(SETTINGS, **settings), SPECS, random.Random(1))
    asked = made.start(0.0) + made.tick(0.1)
    assert {each.stream for each in asked if isinstance(each, Acquire)} == {"shop.a", "shop.b"}
    return made


def record(spec: StreamSpec, time: int, seq: int = 0) -> dict[str, str]:
    begun = records.begin(spec, "s3://lake", "rs0", Position(f"82{time:016X}", time)).put
    return begun | {"seq": str(seq)}


def ready(made: Coordinator, server_time: int) -> list[Action]:
    actions = [
        action
        for reader in READERS
        for action in made.from_child(reader, ReaderReady("rs0", "7", server_time), 1.0)
    ]
    return actions + made.from_child(WRITER, WriterReady(), 1.0)


def surveyed(
    made: Coordinator, actions: list[Action], beyond: str | None = None, now: float = 2.5
) -> list[Action]:
    """These actions, and those that follow the survey of the lake."""
    asked = [each.message for each in actions if isinstance(each, Send) and isinstance(each.message, Survey)]
    answers = [Surveyed(each.spec.stream, each.generation, beyond) for each in asked]
    return actions + [action for answer in answers for action in made.from_child(WRITER, answer, now)]


def assigned(actions: list[Action]) -> list[Assign]:
    return [each.message for each in actions if isinstance(each, Send) and isinstance(each.message, Assign)]


def test_a_stream_that_was_handed_over_is_not_reopened() -> None:
    made = coordinator()
    fields = record(SPECS[0], make_time(100, 1)) | records.close("h").put
    (exit_,) = [each for each in taken(made, "shop.a", fields, 0.5) if isinstance(each, Exit)]
    assert exit_.code == 2
    assert "another configuration has taken over" in str(exit_.error)


def test_a_stream_starts_over_only_after_the_handover_that_abandoned_it() -> None:
    """It was closed by ``h``; if another handover has closed it since, others cover it."""
    fields = record(SPECS[0], make_time(100, 1), 7) | records.close("h").put
    made = coordinator(abandoned={"shop.a": "h"})
    ready(made, make_time(200, 0))
    (assign,) = assigned(surveyed(made, taken(made, "shop.a", fields, 2.0)))
    assert (assign.start, assign.start_at) == (None, "now")
    begun = made.from_child(READERS[0], Started(0, Position(time=make_time(200, 1))), 3.0)
    (write,) = [each for each in begun if isinstance(each, Write)]
    assert "closed" in write.change.remove
    assert int(write.change.put["seq"]) >= 7
    again = coordinator(abandoned={"shop.a": "g"})
    (exit_,) = [each for each in taken(again, "shop.a", fields, 0.5) if isinstance(each, Exit)]
    assert "another configuration has taken over" in str(exit_.error)


def test_a_common_end_is_after_everything_committed() -> None:
    """Another engine may have run the streams until just before we acquired their leases."""
    made = coordinator(common_end=True)
    assert not assigned(ready(made, make_time(100, 0)))
    one = surveyed(made, taken(made, "shop.a", record(SPECS[0], make_time(90, 1)), 2.0))
    assert not assigned(one), "we do not have all leases yet"
    actions = surveyed(made, taken(made, "shop.b", record(SPECS[1], make_time(250, 7)), 3.0))
    assert [each.until for each in assigned(actions)] == [make_time(250, 7)] * 2


def test_a_stream_that_passed_the_common_end_stops_the_handover() -> None:
    made = coordinator(common_end=True)
    ready(made, make_time(100, 0))
    taken(made, "shop.a", record(SPECS[0], make_time(90, 1)), 2.0)
    taken(made, "shop.b", record(SPECS[1], make_time(90, 1)), 2.0)
    lease_lost(made, "shop.a", 3.0)
    actions = taken(made, "shop.a", record(SPECS[0], make_time(101, 1)), 40.0)
    assert any(isinstance(each, Exit) and each.code for each in actions)


def test_leases_are_kept_for_the_handover() -> None:
    made = coordinator(common_end=True)
    ready(made, make_time(100, 0))
    actions: list[Action] = []
    for spec in SPECS:
        surveyed(made, taken(made, spec.stream, record(spec, make_time(90, 1)), 2.0))
    for number in range(len(SPECS)):
        actions += made.from_child(READERS[number], Started(0, None), 3.0)
        end = Position(f"82{make_time(100, 1):016X}", make_time(100, 1))
        actions += made.from_child(READERS[number], Finished(0, end), 4.0)
    assert any(isinstance(each, Exit) and each.code == 0 for each in actions)
    assert not any(isinstance(each, Release) for each in actions)


@pytest.mark.parametrize("after", [{}, "older"], ids=["gone", "older"])
def test_a_lost_record_stops_the_engine(after: Any) -> None:
    """Segment numbers would start over, and existing objects would be overwritten."""
    made = coordinator()
    ready(made, make_time(100, 0))
    surveyed(made, taken(made, "shop.a", {}, 2.0))
    start = Position(time=make_time(100, 1))
    made.from_child(READERS[0], Started(0, start), 3.0)
    fields = record(SPECS[0], start.time)
    for seq in (first_segment(start), first_segment(start) + 1):
        fields |= write_segment(made, seq)
    lease_lost(made, "shop.a", 9.0)
    found = fields | {"seq": str(first_segment(start) - 1)} if after == "older" else {}
    (exit_,) = [each for each in taken(made, "shop.a", found, 20.0) if isinstance(each, Exit)]
    assert exit_.code == 1
    assert "the state store has lost its record" in str(exit_.error)


def test_a_lost_history_restarts_the_stream_once() -> None:
    """Losing the lease later must not make the stream forget its position."""
    lost_at = Position(f"82{make_time(90, 1):016X}", make_time(90, 1))
    made = coordinator(on_history_lost="snapshot", lost={"shop.a": lost_at})
    ready(made, make_time(100, 0))
    found = record(SPECS[0], make_time(90, 1), seq=9_000_000_001)
    (assign,) = assigned(surveyed(made, taken(made, "shop.a", found, 2.0)))
    assert assign.start is None
    made.from_child(READERS[0], Started(0, Position(time=make_time(100, 0))), 3.0)
    lease_lost(made, "shop.a", 4.0)
    later = record(SPECS[0], make_time(120, 1), seq=9_000_000_005)
    (assign,) = assigned(surveyed(made, taken(made, "shop.a", later, 40.0)))
    assert assign.start is not None
    assert assign.start.time == make_time(120, 1)


def test_a_stream_that_another_engine_has_started_over_keeps_its_position() -> None:
    made = coordinator(on_history_lost="snapshot", lost={"shop.a": Position("82", make_time(90, 1))})
    ready(made, make_time(100, 0))
    found = record(SPECS[0], make_time(120, 1), seq=9_000_000_001)
    (assign,) = assigned(surveyed(made, taken(made, "shop.a", found, 2.0)))
    assert assign.start is not None
    assert assign.start.time == make_time(120, 1)


BEYOND = object_key("shop.a", 9_000_000_002, "shop", "a", "collection")


@pytest.mark.parametrize("known", [None, 9_000_000_001], ids=["gone", "older"])
def test_a_state_older_than_the_lake_stops_only_its_stream(known: int | None) -> None:
    made = coordinator()
    ready(made, make_time(100, 0))
    found = record(SPECS[0], make_time(90, 1), known) if known else {}
    actions = surveyed(made, taken(made, "shop.a", found, 2.0), BEYOND)
    assert [each for each in actions if isinstance(each, Acquire)] == [Acquire("shop.a")]
    actions = taken(made, "shop.a", found, 3.0)
    assert not assigned(actions)
    assert "it was lost, or is older than the lake" in str(made.streams["shop.a"].error)
    other = surveyed(made, taken(made, "shop.b", record(SPECS[1], make_time(90, 1)), 3.0))
    assert [each.spec.stream for each in assigned(other)] == ["shop.b"]


def test_an_object_made_by_another_engine_meanwhile_is_not_lost_state() -> None:
    """By the time of the survey, the lease had gone to another engine and come back."""
    made = coordinator()
    ready(made, make_time(100, 0))
    surveyed(made, taken(made, "shop.a", record(SPECS[0], make_time(90, 1), 9_000_000_001), 2.0), BEYOND)
    later = taken(made, "shop.a", record(SPECS[0], make_time(95, 1), 9_000_000_002), 3.0)
    assert [each.next_seq for each in assigned(surveyed(made, later))] == [9_000_000_003]


def test_a_writer_that_dies_while_listing_the_lake_is_replaced() -> None:
    made = coordinator()
    ready(made, make_time(100, 0))
    taken(made, "shop.a", record(SPECS[0], make_time(90, 1)), 2.0)
    made.child_exited(WRITER, -9, 3.0)
    made.tick(60.0)
    actions = surveyed(made, made.from_child(WRITER, WriterReady(), 61.0), now=62.0)
    assert [each.spec.stream for each in assigned(actions)] == ["shop.a"]


def test_a_record_of_another_stream_is_refused() -> None:
    made = coordinator()
    foreign = StreamSpec("shop.a", "collection", "shop", ("b",))
    (exit_,) = [e for e in taken(made, "shop.a", record(foreign, 1), 0.5) if isinstance(e, Exit)]
    assert exit_.code == 2
    assert "use another state.prefix" in str(exit_.error)


def failed(kind: FailureKind, made: Coordinator, stream: str = "") -> Failed:
    generation = made.streams[stream].generation if stream else None
    return Failed(kind, "read", "went wrong", "", stream or None, generation)


def exits(actions: list[Action]) -> list[int]:
    return [each.code for each in actions if isinstance(each, Exit)]


def errors(actions: list[Action]) -> list[str]:
    return [each.event for each in actions if isinstance(each, Log) and each.level == "error"]


def running(**settings: Any) -> Coordinator:
    """Both streams are being read."""
    made = coordinator(**settings)
    ready(made, make_time(100, 0))
    for spec in SPECS:
        surveyed(made, taken(made, spec.stream, record(spec, make_time(90, 1)), 2.0))
    for reader, spec in zip(READERS, SPECS, strict=True):
        made.from_child(reader, Started(made.streams[spec.stream].generation, None), 3.0)
    return made


def status(made: Coordinator) -> list[str]:
    return [stream.status for stream in made.streams.values()]


def test_a_fatal_error_stops_only_its_stream() -> None:
    made = running()
    actions = made.from_child(READERS[0], failed("fatal", made, "shop.a"), 4.0)
    assert errors(actions) == ["stream stopped"]
    assert not exits(actions)
    assert status(made) == ["failed", "running"]
    assert "went wrong" in str(made.streams["shop.a"].error)
    assert exits(made.from_child(READERS[1], failed("fatal", made, "shop.b"), 5.0)) == [1]


def test_an_exhausted_retry_budget_stops_only_its_stream() -> None:
    made = running()
    for attempt in range(5):
        assert status(made) == ["running", "running"], attempt
        assert not exits(made.from_child(WRITER, failed("transient", made, "shop.a"), 10.0 * attempt))
        made.tick(10.0 * attempt + 5)
    assert status(made) == ["failed", "running"]


def test_a_configuration_that_has_worked_is_retried() -> None:
    """For example, a password may be changed in one place before the other."""
    made = running()
    actions = made.from_child(READERS[0], failed("config", made, "shop.a"), 4.0)
    assert not errors(actions)
    assert len(assigned(made.tick(20.0))) == 1
    for _ in range(4):
        made.from_child(READERS[0], failed("config", made, "shop.a"), 30.0)
    assert status(made) == ["failed", "running"]


def test_a_configuration_that_never_worked_stops_its_stream() -> None:
    made = coordinator()
    ready(made, make_time(100, 0))
    for spec in SPECS:
        surveyed(made, taken(made, spec.stream, record(spec, make_time(90, 1)), 2.0))
    assert not exits(made.from_child(READERS[0], failed("config", made, "shop.a"), 3.0))
    assert status(made) == ["failed", "running"]
    assert exits(made.from_child(READERS[1], failed("config", made, "shop.b"), 4.0)) == [2]


@pytest.mark.parametrize("kind", ["transient", "config"])
def test_a_process_that_fails_to_start_is_restarted(kind: FailureKind) -> None:
    """Unless it reports a configuration error, and the configuration has never worked."""
    made = coordinator()
    if kind == "config":
        assert exits(made.from_child(READERS[0], failed(kind, made), 1.0)) == [2]
        made = coordinator()
        made.from_child(READERS[1], ReaderReady("rs0", "7", 1), 1.0)
    assert not exits(made.from_child(READERS[0], failed(kind, made), 1.0))
    made.child_exited(READERS[0], 1, 1.0)
    assert Spawn(READERS[0]) in made.tick(10.0)


def test_servers_that_stay_unavailable_end_the_engine_with_their_error() -> None:
    made = coordinator()
    actions: list[Action] = []
    for attempt in range(5):
        for reader in READERS:
            assert not exits(actions), attempt
            actions += made.from_child(reader, failed("transient", made), 10.0 * attempt)
            actions += made.child_exited(reader, 1, 10.0 * attempt)
        actions += made.tick(10.0 * attempt + 5)
    (exit_,) = [each for each in actions if isinstance(each, Exit)]
    assert exit_.code == 1
    assert str(exit_.error) == "read: went wrong"


def test_streams_that_crash_their_writer_are_stopped_one_at_a_time() -> None:
    made = running()
    actions: list[Action] = []
    for attempt in range(5):
        now = 100.0 * attempt
        for reader, spec in zip(READERS, SPECS, strict=True):
            generation = made.streams[spec.stream].generation
            seq = made.streams[spec.stream].ledger.committed_seq + 1
            sent = made.from_child(reader, SlabRequest(generation, seq, 1000), now)
            offset = next(each.message.offset for each in sent if isinstance(each, Send))  # type: ignore[union-attr]
            made.from_child(reader, BatchReady(generation, seq, offset, 1000, 1, 300), now)
        actions += made.child_exited(WRITER, -9, now)
        made.tick(now + 50)
        made.from_child(WRITER, WriterReady(), now + 51)
    assert errors(actions) == ["stream stopped"]
    assert not exits(actions)
    assert sorted(status(made)) == ["failed", "running"]


@pytest.mark.parametrize("kind", ["transient", "config", "fatal"])
def test_an_error_of_one_process_does_not_end_a_running_engine(kind: FailureKind) -> None:
    made = running()
    for attempt in range(5):
        now = 10.0 * attempt + 4
        assert status(made) == ["running", "running"], attempt
        assert not exits(made.from_child(READERS[0], failed(kind, made), now))
        assert not exits(made.child_exited(READERS[0], 1, now))
        made.tick(now + 5)
    assert status(made) == ["failed", "running"]


def test_a_stopped_stream_releases_its_lease() -> None:
    """Another engine may be able to run it; and leases that were released are not renewed."""
    made = running()
    assert Release(("shop.a",)) in made.from_child(READERS[0], failed("fatal", made, "shop.a"), 4.0)
    assert [each.streams for each in made.tick(40.0) if isinstance(each, Renew)] == [("shop.b",)]
    assert not [each for each in made.tick(80.0) if isinstance(each, Acquire)]


def test_a_lease_granted_after_its_stream_has_stopped_is_released() -> None:
    made = coordinator()
    made.from_child(READERS[1], ReaderReady("rs0", "7", 1), 1.0)
    for attempt in range(5):
        made.child_exited(READERS[0], -9, 10.0 * attempt)
        made.tick(10.0 * attempt + 5)
    assert status(made) == ["failed", "waiting"]
    assert taken(made, "shop.a", record(SPECS[0], make_time(90, 1)), 60.0) == [Release(("shop.a",))]
    assert status(made) == ["failed", "waiting"]


def test_a_history_that_is_lost_repeatedly_stops_its_stream() -> None:
    """It starts over each time, as configured, after a delay; but only so many times."""
    made = running(on_history_lost="now")
    for attempt in range(5):
        now = 10.0 * attempt + 4
        assert status(made) == ["running", "running"], attempt
        assert not assigned(made.from_child(READERS[0], failed("stream_lost", made, "shop.a"), now))
        assert len(assigned(made.tick(now + 5))) == (attempt < 4)
    assert status(made) == ["failed", "running"]


def test_the_collections_of_a_stream_that_never_started_are_not_loaded() -> None:
    """Events after the load would be missing. The collections of the other stream are loaded."""
    made = Coordinator(msgspec.structs.replace(SETTINGS, pool=1), SPECS, random.Random(1))
    made.load([*splits_of(3, "a"), *splits_of(3, "b")], {})
    made.start(0.0)
    made.tick(0.1)
    ready(made, make_time(100, 0))
    surveyed(made, taken(made, "shop.a", {}, 2.0))
    surveyed(made, taken(made, "shop.b", {}, 2.0))
    made.from_child(READERS[0], failed("fatal", made, "shop.a"), 3.0)
    actions = made.from_child(READERS[1], Started(0, Position(time=make_time(100, 0))), 4.0)
    asked = [each.stream for each in actions if isinstance(each, Acquire)]
    assert asked
    assert all(each.startswith("b/") for each in asked)


def test_a_lasting_lack_of_memory_is_reported_periodically() -> None:
    made = running(memory_limit=1000)
    actions = [each for now in range(0, 120, 2) for each in made.memory_used(900, 1000.0 + now)]
    assert len([each for each in actions if isinstance(each, Log)]) == 2
    assert len([each for each in actions if isinstance(each, Send) and each.child == WRITER]) == 60


def test_a_drain_does_not_wait_for_stopped_streams() -> None:
    made = running()
    made.from_child(READERS[0], failed("fatal", made, "shop.a"), 4.0)
    actions = made.shut_down(5.0)
    assert [each.child for each in actions if isinstance(each, Send)] == [READERS[1]]
    end = Position(f"82{make_time(90, 1):016X}", make_time(90, 1))
    actions = made.from_child(READERS[1], Finished(made.streams["shop.b"].generation, end), 6.0)
    assert exits(actions) == [1]


def test_catching_up_does_not_wait_for_stopped_streams() -> None:
    made = running(until_caught_up=True)
    made.from_child(READERS[0], failed("fatal", made, "shop.a"), 4.0)
    end = Position(f"82{make_time(100, 1):016X}", make_time(100, 1))
    actions = made.from_child(READERS[1], Finished(made.streams["shop.b"].generation, end), 6.0)
    assert exits(actions) == [1]


def test_a_handover_with_a_stopped_stream_is_void() -> None:
    made = running(common_end=True)
    actions = made.from_child(READERS[0], failed("fatal", made, "shop.a"), 4.0)
    assert exits(actions) == [1]
    assert {name for each in actions if isinstance(each, Release) for name in each.streams} == {"shop.a", "shop.b"}


def test_it_is_at_rest_unless_a_process_may_hold_rows() -> None:
    made = running()
    at_rest = [made.is_at_rest]
    generation, seq = made.streams["shop.a"].generation, made.streams["shop.a"].ledger.committed_seq + 1
    sent = made.from_child(READERS[0], SlabRequest(generation, seq, 1000), 4.0)
    offset = next(each.message.offset for each in sent if isinstance(each, Send))  # type: ignore[union-attr]
    at_rest.append(made.is_at_rest)  # a reader fills a slab
    made.from_child(READERS[0], BatchReady(generation, seq, offset, 1000, 1, 300), 4.0)
    made.from_child(WRITER, SlabFreed(offset), 5.0)
    assert not made.grants.slabs
    at_rest.append(made.is_at_rest)  # the writer has copied the rows
    made.from_child(READERS[0], failed("fatal", made, "shop.a"), 6.0)
    assert at_rest == [True, False, False]
    assert made.is_at_rest


def test_a_stopped_stream_leaves_nothing_behind() -> None:
    made = running()
    generation, seq = made.streams["shop.a"].generation, made.streams["shop.a"].ledger.committed_seq + 1
    offsets = []
    for _ in range(2):
        sent = made.from_child(READERS[0], SlabRequest(generation, seq, 1000), 4.0)
        offsets.append(next(each.message.offset for each in sent if isinstance(each, Send)))  # type: ignore[union-attr]
        if len(offsets) == 1:
            made.from_child(READERS[0], BatchReady(generation, seq, offsets[0], 1000, 1, 300), 4.0)
    actions = made.from_child(READERS[0], failed("fatal", made, "shop.a"), 5.0)
    told = [(each.child, type(each.message)) for each in actions if isinstance(each, Send)]
    assert told == [(WRITER, Abandon), (READERS[0], Unassign)]
    made.from_child(READERS[0], BatchReady(generation, seq, offsets[1], 1000, 1, 300), 6.0)
    made.from_child(WRITER, SlabFreed(offsets[0]), 6.0)
    assert not made.grants.slabs
    assert not made.streams["shop.a"].ledger.segments
    assert not [each for each in made.tick(500.0) if isinstance(each, Kill)], "its reader is idle"


def test_a_stream_whose_survey_crashes_writers_is_the_only_one_stopped() -> None:
    made = coordinator()
    ready(made, make_time(100, 0))
    surveyed(made, taken(made, "shop.b", record(SPECS[1], make_time(90, 1)), 2.0))
    taken(made, "shop.a", record(SPECS[0], make_time(90, 1)), 2.0)
    for attempt in range(5):
        now = 100.0 * attempt + 3
        assert status(made) == ["waiting", "running"], attempt
        assert not exits(made.child_exited(WRITER, -9, now))
        made.tick(now + 50)
        made.from_child(WRITER, WriterReady(), now + 51)
    assert status(made) == ["failed", "running"]


def splits_of(count: int, collection: str = "a") -> list[BackfillSpec]:
    return [SplitSpec(f"{collection}/{number}", "shop", collection) for number in range(count)]


def test_a_failed_split_does_not_affect_the_others() -> None:
    made, specs = pool(3)
    actions: list[Action] = []
    for number, spec in enumerate(specs):
        actions += taken(made, spec.stream, {}, 10.0 + number)
        generation = made.streams[spec.stream].generation
        if number == 1:
            actions += made.from_child(READERS[0], failed("fatal", made, spec.stream), 10.0 + number)
        else:
            made.from_child(READERS[0], Started(generation, Position(time=1)), 10.0 + number)
            actions += made.from_child(READERS[0], Finished(generation, Position(END, 1)), 10.0 + number)
    assert errors(actions) == ["stream stopped"]
    assert exits(actions) == [1]
    assert [name for name, stream in made.streams.items() if stream.error] == [specs[1].stream]


def test_consecutive_failed_splits_stop_the_backfill() -> None:
    made, specs = pool(9)
    actions: list[Action] = []
    for number in range(2):
        assert not exits(actions)
        actions += taken(made, specs[number].stream, {}, 10.0)
        actions += made.from_child(READERS[0], failed("fatal", made, specs[number].stream), 11.0)
    assert errors(actions)[-1] == "splits left for the next run"
    assert not exits(actions)
    (asked,) = [name for name, stream in made.streams.items() if not stream.error]
    taken(made, asked, {}, 12.0)
    assert exits(made.from_child(READERS[0], failed("fatal", made, asked), 12.0)) == [1]


def fail_in_turn(made: Coordinator, names: Container[str]) -> tuple[list[str], list[Action]]:
    """Read all splits, failing those of some collections; the splits that were read, and the last actions."""
    read: list[str] = []
    actions: list[Action] = []
    while not exits(actions):
        spec = next(each.spec for each in made.streams.values() if not each.error)
        actions += taken(made, spec.stream, {}, 10.0)
        generation = made.streams[spec.stream].generation
        if spec.collections[0] in names:
            actions += made.from_child(READERS[0], failed("fatal", made, spec.stream), 11.0)
        else:
            read.append(spec.stream)
            made.from_child(READERS[0], Started(generation, Position(time=1)), 12.0)
            actions += made.from_child(READERS[0], Finished(generation, Position(END, 1)), 12.0)
    return read, actions


def test_failing_splits_of_one_collection_do_not_block_the_others() -> None:
    made, _ = pool(9, [*splits_of(9, "bad"), *splits_of(3, "good")])
    read, actions = fail_in_turn(made, {"bad"})
    assert read == ["good/0", "good/1", "good/2"]
    assert exits(actions) == [1]
    assert len([name for name, stream in made.streams.items() if stream.error]) <= 3, "the rest were not read"


def test_consecutive_failed_splits_across_collections_stop_the_backfill() -> None:
    names = "abcdefgh"
    made, _ = pool(8, [each for name in names for each in splits_of(9, name)])
    _, actions = fail_in_turn(made, names)
    assert exits(actions) == [1]
    assert len([name for name, stream in made.streams.items() if stream.error]) <= 5


def test_a_password_that_worked_for_other_splits_is_retried() -> None:
    made, specs = pool(3)
    taken(made, specs[0].stream, {}, 2.0)
    sent = made.from_child(READERS[0], SlabRequest(made.streams[specs[0].stream].generation, 101, 1000), 3.0)
    made.from_child(
        READERS[0], Started(made.streams[specs[0].stream].generation, Position(time=make_time(1, 0))), 3.0
    )
    offset = next(each.message.offset for each in sent if isinstance(each, Send))  # type: ignore[union-attr]
    made.from_child(
        READERS[0], BatchReady(made.streams[specs[0].stream].generation, 101, offset, 1000, 1, 300), 3.0
    )
    made.from_child(READERS[0], failed("fatal", made, specs[0].stream), 4.0)
    taken(made, specs[1].stream, {}, 5.0)
    actions = made.from_child(READERS[0], failed("config", made, specs[1].stream), 6.0)
    assert not errors(actions)
    assert len(assigned(made.tick(20.0))) == 1


def pool(count: int, specs: Sequence[BackfillSpec] = ()) -> tuple[Coordinator, Sequence[BackfillSpec]]:
    """An engine with one reader, and these splits or this many."""
    made = Coordinator(msgspec.structs.replace(SETTINGS, pool=1), [], random.Random(1))
    specs = specs or splits_of(count)
    made.load(specs, {})
    made.start(0.0)
    made.from_child(READERS[0], ReaderReady("rs0", "7", 1), 1.0)
    made.from_child(WRITER, WriterReady(), 1.0)
    return made, specs


def write_segment(
    made: Coordinator, seq: int, replaced: tuple[Replaced, ...] = (), into: list[Action] | None = None
) -> dict[str, str]:
    """Take one segment from its slab to its commit; the fields written to the store."""
    actions = made.from_child(READERS[0], SlabRequest(0, seq, 1000), 4.0)
    offset = next(each.message.offset for each in actions if isinstance(each, Send))  # type: ignore[union-attr]
    token = f"82{make_time(100, seq % 1000):016X}"
    actions += made.from_child(READERS[0], BatchReady(0, seq, offset, 1000, 1, 300), 4.0)
    intent = Intent(seq, token, Position(token, make_time(100, seq % 1000)), (), 1, replaced)
    actions += made.from_child(READERS[0], SegmentCut(0, intent, "full"), 5.0)
    actions += made.from_child(WRITER, Sealed("shop.a", 0, seq, (), 100, 0), 6.0)
    actions += written(made, actions, 7.0)
    committed = made.from_child(WRITER, Published("shop.a", 0, seq), 8.0)
    actions += committed + written(made, committed, 9.0)
    if into is not None:
        into += actions
    fields: dict[str, str] = {}
    for each in actions:
        if isinstance(each, Write):
            fields |= each.change.put
            for name in each.change.remove:
                fields.pop(name, None)
    return fields
