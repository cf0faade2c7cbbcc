"""Plans and their splits, and when splits may begin."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from engine.core import records
from engine.core.actions import Acquire, Action, Child, Release, Send
from engine.core.backfill import (
    END,
    Plan,
    Progress,
    Selection,
    decode_index,
    left_to_read,
    make_place,
    progress_of,
    split_place,
    thinned,
)
from engine.core.coordinator import Coordinator
from engine.core.messages import Assign, Finished, ReaderReady, Started, Surveyed, WriterReady
from engine.core.naming import is_split, plan_of_split, stream_id
from engine.core.position import Position, make_time
from engine.core.records import StreamRecord
from engine.core.specs import BackfillSpec, StreamSpec
from engine.errors import StateLostError
from tests.core.answers import taken
from tests.core.test_coordinator import SETTINGS

TIME = make_time(1_800_000_000, 1)
PLAN = Plan("1f3a5c7e", "shop", "orders", Selection(), None, None, ("0a", "0b"), 3000, 900_000, 0.0)


def test_splits_cover_everything_once() -> None:
    splits = PLAN.splits()
    assert [(each.lower, each.upper) for each in splits] == [(None, "0a"), ("0a", "0b"), ("0b", None)]
    assert [each.stream for each in splits] == [f"shop.orders~read1f3a5c7e-00000{n}" for n in range(3)]
    assert all(is_split(each.stream) for each in splits)
    assert {plan_of_split(each.stream) for each in splits} == {PLAN.id}
    assert not is_split(stream_id("shop", "a~read1-000000"))


@given(st.lists(st.integers(0, 50), unique=True).map(sorted), st.integers(1, 20))
def test_bounds_are_in_order_and_different(numbers: list[int], parts: int) -> None:
    keys = [f"{number:02d}" for number in numbers]
    bounds = thinned(keys, parts)
    assert list(bounds) == sorted(set(bounds))
    assert len(bounds) <= parts - 1
    assert len(bounds) == parts - 1 or len(keys) < parts


@given(st.integers(0, 10**15), st.integers(0, 10**15))
def test_places_are_in_order(one: int, other: int) -> None:
    assert (make_place(one, "ff") < make_place(other, "ff")) == (one < other)
    assert make_place(one, "ff") < END
    assert split_place(make_place(one, "0a")) == (one, "0a")


def test_a_mark_is_the_last_split_and_not_a_document() -> None:
    plan = replace(PLAN, since=TIME)
    splits, mark = plan.splits(), plan.mark()
    assert splits == PLAN.splits()
    assert PLAN.mark() is None
    assert mark is not None
    assert (mark.stream, mark.time) == ("shop.orders~read1f3a5c7e-000003", TIME)
    assert plan.specs() == [*splits, mark]
    assert left_to_read(plan, {})[-1] == mark
    assert left_to_read(plan, {})[0] == splits[-1]
    done = StreamRecord(position=Position(END), rows=1)
    known = {each.stream: done for each in plan.specs()}
    assert left_to_read(plan, known) == []
    assert (progress_of(plan, known).documents, progress_of(plan, known).splits) == (3, 4)


def test_progress() -> None:
    first, second, _ = PLAN.splits()
    done = StreamRecord(spec=first, position=Position(END, TIME), rows=1000)
    begun = StreamRecord(spec=second, position=Position(make_place(500, "0a"), TIME), rows=500)
    known = {first.stream: done, second.stream: begun}
    found = progress_of(PLAN, known)
    assert (found.splits, found.splits_total, found.documents, found.bytes) == (1, 3, 1500, 450_000)
    first, second, third = PLAN.splits()
    assert left_to_read(PLAN, {}) == [third, first, second]
    assert left_to_read(PLAN, known) == [third, second]


def coordinator(specs: list[StreamSpec], splits: Sequence[BackfillSpec], pool: int) -> Coordinator:
    settings = replace(SETTINGS, start_at="snapshot", pool=pool)
    progress = {"shop.orders": Progress("shop.orders", splits_total=len(splits), documents_total=3000)}
    made = Coordinator(settings, specs, random.Random(1))
    made.load(splits, progress)
    made.start(0.0)
    return made


def asked(actions: list[Action]) -> list[str]:
    return [each.stream for each in actions if isinstance(each, Acquire)]


def assigned(actions: list[Action]) -> dict[str, Child]:
    return {
        each.message.spec.stream: each.child
        for each in actions
        if isinstance(each, Send) and isinstance(each.message, Assign)
    }


def ready(made: Coordinator) -> list[Action]:
    children = [child for child in made.children if child.role == "reader"]
    actions = [a for child in children for a in made.from_child(child, ReaderReady("rs0", "7", TIME), 1.0)]
    return actions + made.from_child(Child("writer", 0), WriterReady(), 1.0)


def test_splits_wait_for_the_streams_position() -> None:
    """Reading before the stream has a durable starting point could miss a change for good."""
    stream = StreamSpec("shop.orders", "collection", "shop", ("orders",))
    made = coordinator([stream], PLAN.splits(), pool=2)
    actions = made.tick(0.5) + ready(made)
    assert asked(actions) == ["shop.orders"]
    taken(made, "shop.orders", {}, 1.5)
    actions = made.from_child(Child("writer", 0), Surveyed("shop.orders", 0, None), 1.5)
    assert list(assigned(actions)) == ["shop.orders"]
    assert asked(made.tick(2.0)) == []
    actions = made.from_child(Child("reader", 0), Started(0, Position(time=TIME)), 2.5)
    kinds = [type(each).__name__ for each in actions]
    assert kinds.index("Write") < kinds.index("Acquire"), "the position is stored before a split is acquired"
    assert asked(actions) == [each.stream for each in PLAN.splits()], (
        "one for each of two readers, and one in advance"
    )


def test_readers_move_from_split_to_split() -> None:
    splits = PLAN.splits()
    made = coordinator([], splits, pool=1)
    actions = made.tick(0.5) + ready(made)
    first, second = asked(actions)
    assert assigned(taken(made, first, {}, 1.0)) == {first: Child("reader", 0)}
    assert assigned(taken(made, second, {}, 1.0)) == {}, "there is only one reader"
    generation = made.streams[first].generation
    made.from_child(Child("reader", 0), Started(generation, Position(time=TIME)), 2.0)
    actions = made.from_child(Child("reader", 0), Finished(generation, Position(END, TIME)), 3.0)
    assert assigned(actions + made.tick(3.5)) == {second: Child("reader", 0)}
    assert Release((first,)) in actions
    assert first not in made.streams
    assert made.splits.progress["shop.orders"].splits == 1
    third = splits[2]
    record = records.begin(third, "s3://lake", "rs0", Position(END, TIME)).put | {"rows": "7"}
    taken(made, third.stream, record, 4.0)
    assert made.splits.progress["shop.orders"].splits == 2, "another engine has already read it"
    assert made.splits.progress["shop.orders"].documents == 7


@pytest.mark.parametrize("text", ["[", '["a", 1]', "{", '{"format": 2}', "x"])
def test_a_damaged_list_is_an_error_that_says_so(text: str) -> None:
    with pytest.raises(StateLostError, match="is damaged"):
        decode_index(text)
