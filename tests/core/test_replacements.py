"""Replaced collections: what the stream's record says of them, and what the engine does about them."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from engine.core import records
from engine.core.actions import Action, Exit, Log, Write
from engine.core.backfill import END, not_loaded
from engine.core.ledger import Ledger, WriteCommit, first_segment
from engine.core.messages import Finished, Intent, Replaced, Started
from engine.core.position import Position, make_time
from engine.core.records import StreamRecord, read_record
from engine.core.specs import StreamSpec
from tests.core import test_backfill as backfill
from tests.core.answers import taken
from tests.core.test_backfill import PLAN
from tests.core.test_coordinator import READERS, SPECS, coordinator, ready, record, surveyed, write_segment

TIME = make_time(200, 1)


def test_a_commit_records_what_all_its_segments_replaced() -> None:
    ledger = Ledger()
    for seq in (1, 2):
        ledger.segment(seq, 0)
        ledger.cut(Intent(seq, None, Position("", seq), (), 1, (Replaced(f"shop.c{seq}", seq),)))
        ledger.sealed(seq, ())
        ledger.intent_durable(seq)
    assert ledger.published(2) == []
    (commit,) = ledger.published(1)
    assert isinstance(commit, WriteCommit)
    fields = record(SPECS[0], 1) | records.committed(commit, 2).put
    assert read_record(fields).replaced == {"shop.c1": 1, "shop.c2": 2}
    done = records.loaded(["shop.c1"])
    assert read_record({name: fields[name] for name in fields.keys() - set(done.remove)}).replaced == {
        "shop.c2": 2
    }


def with_replaced(made: Any) -> list[Action]:
    """The stream's lease is acquired, and its record has a replaced collection."""
    ready(made, TIME)
    fields = record(SPECS[0], make_time(90, 1)) | {"replaced:shop.a": str(TIME)}
    return surveyed(made, taken(made, "shop.a", fields, 2.0))


def removed(actions: list[Action]) -> set[str]:
    return {name for each in actions if isinstance(each, Write) for name in each.change.remove}


def test_replacements_loaded_since_are_forgotten() -> None:
    for loaded, left in (({}, {"shop.a": TIME}), ({"shop.a": TIME - 1}, {"shop.a": TIME}), ({"shop.a": TIME}, {})):
        made = coordinator(loaded=loaded)
        assert ("replaced:shop.a" in removed(with_replaced(made))) == (not left)
        assert made.streams["shop.a"].replaced == left


@pytest.mark.parametrize("policy", ["reload", "warn", "fail"])
def test_the_policy_holds_at_the_start_and_at_the_commit(policy: str) -> None:
    made = coordinator(on_replaced=policy, reload_from=0.0)
    actions = with_replaced(made)
    ends = [each for each in actions if isinstance(each, Exit)]
    assert [each.code for each in ends] == ([0] if policy == "reload" else [])
    assert made.reloads == (policy == "reload")
    assert (made.streams["shop.a"].error is not None) == (policy == "fail")
    made = coordinator(on_replaced=policy, reload_from=0.0)
    ready(made, TIME)
    surveyed(made, taken(made, "shop.a", {}, 2.0))
    start = Position(time=make_time(100, 1))
    made.from_child(READERS[0], Started(0, start), 3.0)
    seq = first_segment(start)
    fields = write_segment(made, seq, replaced=(Replaced("shop.a", TIME),))
    assert read_record(record(SPECS[0], 1) | fields).replaced == {"shop.a": TIME}
    assert made.reloads == (policy == "reload")
    assert (made.streams["shop.a"].error is not None) == (policy == "fail")


def test_a_reload_waits_for_its_time() -> None:
    made = coordinator(reload_from=50.0)
    with_replaced(made)
    assert not any(isinstance(each, Exit) for each in made.tick(49.0))
    assert [each.code for each in made.tick(50.0) if isinstance(each, Exit)] == [0]


def test_a_mark_settles_earlier_replacements() -> None:
    for time, is_left in ((backfill.TIME, False), (backfill.TIME + 1, True)):
        stream = StreamSpec("shop.orders", "collection", "shop", ("orders",))
        mark = replace(PLAN, since=backfill.TIME).mark()
        assert mark is not None
        made = backfill.coordinator([stream], [mark], pool=1)
        backfill.ready(made)
        made.tick(0.5)
        found = record(stream, backfill.TIME) | {"replaced:shop.orders": str(time)}
        surveyed(made, taken(made, "shop.orders", found, 1.5))
        assert made.streams["shop.orders"].replaced
        made.from_child(READERS[0], Started(0, None), 2.0)
        taken(made, mark.stream, {}, 2.5)
        generation = made.streams[mark.stream].generation
        made.from_child(READERS[1], Started(generation, Position(time=backfill.TIME)), 3.0)
        actions = made.from_child(READERS[1], Finished(generation, Position(END, backfill.TIME)), 4.0)
        assert ("replaced:shop.orders" in removed(actions)) != is_left
        assert bool(made.streams["shop.orders"].replaced) == is_left


def test_a_plan_loads_what_was_replaced_before_it_was_made() -> None:
    known = StreamRecord(replaced={"shop.orders": TIME})
    done = replace(PLAN, begun=TIME, finished=1.0)
    assert not_loaded(known, {"shop.orders": done}) == []
    for plan in (PLAN, replace(done, begun=TIME - 1), replace(done, finished=None)):
        assert not_loaded(known, {"shop.orders": plan}) == ["shop.orders"]
    filtered = replace(done, selection=replace(PLAN.selection, filter="{}"))
    assert not_loaded(known, {"shop.orders": filtered}) == ["shop.orders"]
    assert not_loaded(known, {}) == ["shop.orders"]


def test_warnings_name_the_command() -> None:
    made = coordinator(on_replaced="warn")
    ready(made, TIME)
    surveyed(made, taken(made, "shop.a", {}, 2.0))
    start = Position(time=make_time(100, 1))
    made.from_child(READERS[0], Started(0, start), 3.0)
    told: list[Action] = []
    write_segment(made, first_segment(start), replaced=(Replaced("shop.a", TIME),), into=told)
    (warning,) = [each for each in told if isinstance(each, Log) and each.level == "warning"]
    assert warning.fields["remedy"] == "Load them: headrace backfill --collections a --restart."
