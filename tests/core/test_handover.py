"""How the streams of one configuration hand over to those of the next."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from engine.config.streams import streams_of
from engine.core.handover import Succession, find_abandoned, find_gaps, find_succession, overlap
from engine.core.specs import StreamSpec
from tests.config.test_streams import NAMES, running, source


def handover(old: dict[str, Any], new: dict[str, Any]) -> tuple[list[str], list[str]] | None:
    plan = find_succession(streams_of(source(**new)), running(**old))
    return ([s.stream for s in plan.close], [s.stream for s in plan.open]) if plan else None


def test_nothing_to_hand_over() -> None:
    assert handover({}, {}) is None
    assert handover({}, {"collections": ["a", "z"]}) is None
    assert handover({}, {"pipeline": [{"$match": {}}], "full_document": "default"}) is None
    assert handover({"database": "other"}, {"split": {"a": 2}}) is None


def test_splitting_hands_over_one_collection() -> None:
    assert handover({}, {"split": {"a": 2}}) == (["shop.a"], ["shop.a~0of2", "shop.a~1of2"])
    assert handover({"split": {"a": 2}}, {"split": {"a": 3}}) == (
        ["shop.a~0of2", "shop.a~1of2"],
        ["shop.a~0of3", "shop.a~1of3", "shop.a~2of3"],
    )


def test_watching_the_database_closes_all_its_streams() -> None:
    assert handover({}, {"watch": "database", "collections": []}) == ([f"shop.{n}" for n in NAMES], ["shop"])


def test_a_collection_that_returns_to_a_shared_stream_reopens_it() -> None:
    """``a`` had its own stream, was removed from the configuration, and returns to a shared stream."""
    old = running(max_readers=1, collections=["b", "c"]) | running(collections=["a"])
    desired = streams_of(source(max_readers=1, collections=["a", "b", "c"]))
    plan = find_succession(desired, old)
    assert plan is not None
    assert {spec.stream for spec in plan.close} == set(old)
    assert list(plan.open) == desired


def test_database_events_continue_from_their_position() -> None:
    """The stream that carries them may now also have a collection that was never read."""
    old = running(max_readers=2)
    (former,) = [spec for spec in old.values() if spec.carries_database]
    for number in range(100):
        desired = streams_of(source(max_readers=2, collections=[*NAMES, f"new{number}"]))
        plan = find_succession(desired, old)
        assert plan is not None
        if former in plan.close:
            assert any(spec.carries_database for spec in plan.open)


def test_a_stream_whose_successors_have_left_its_collection_out_starts_over() -> None:
    """``d`` went from its own stream to a shared one, was left out of that one's successors, and returns."""
    own, shared = dict.fromkeys(running(), "1"), running(max_readers=1)
    left = running(collections=["a", "b"])
    over = find_abandoned(streams_of(source()), left, own | dict.fromkeys(shared, "2"))
    assert over == {"shop.c": "1", "shop.d": "1", "shop.e": "1"}
    assert find_abandoned(streams_of(source()), shared, own) == {}, "that one hands over"
    assert find_abandoned(streams_of(source()), left, {}) == {}, "they were never closed"


def test_collections_that_were_left_out_for_a_time_are_told() -> None:
    """One selection, another with ``d`` in one shared stream, the first again, and then the other again."""
    a, b = (StreamSpec(f"shop.{name}", "collection", "shop", (name,)) for name in "ab")
    shared = StreamSpec("shop~1", "database", "shop", ("a", "b", "d"))
    again = Succession((a, b), (shared,))
    assert find_gaps(again, [shared]) == {"shop~1": ["d"]}
    assert find_gaps(again, []) == {}, "it is new"
    assert find_gaps(Succession((shared,), (a, b)), [a, b]) == {}
    everything = StreamSpec("shop", "database", "shop")
    assert find_gaps(Succession((a, b), (everything,)), [shared]) == {"shop": ["d"]}
    assert find_gaps(Succession((StreamSpec("x", "database", "x"),), (everything,)), []) == {}


SHAPES = st.fixed_dictionaries(
    {
        "collections": st.lists(st.sampled_from(NAMES), min_size=1, unique=True),
        "max_readers": st.integers(1, 6),
        "parts": st.integers(1, 3),
        "watch": st.sampled_from(["collections", "collections", "database"]),
        "pattern": st.sampled_from(["", "", "*", "?"]),
        "exclude": st.lists(st.sampled_from(NAMES), max_size=2),
    }
)


def specs_of(shape: dict[str, Any]) -> list[StreamSpec]:
    if shape["watch"] == "database":
        return streams_of(source(watch="database", collections=[]))
    split = {shape["collections"][0]: shape["parts"]} if shape["parts"] < shape["max_readers"] else {}
    names, pattern = shape["collections"], shape["pattern"]
    patterns = {"collections": [*names, pattern]} if pattern else {"collections": names}
    if pattern:
        patterns["exclude"] = [each for each in shape["exclude"] if each not in names]
    return streams_of(source(max_readers=shape["max_readers"], split=split, **patterns))


def covers(spec: StreamSpec, name: str, hashed: int) -> bool:
    if spec.level == "database":  # every pattern here matches every name
        included = name in spec.collections or not spec.collections
        return (included or bool(spec.patterns)) and not (name in spec.exclude and name not in spec.collections)
    return name in spec.collections and hashed % spec.parts == spec.part


Landed = dict[tuple[str, int, int], int]


@given(st.lists(SHAPES, min_size=1, max_size=8), st.randoms())
def test_no_event_is_covered_twice_however_configurations_change(
    shapes: list[dict[str, Any]], rng: random.Random
) -> None:
    assert set(played(shapes, rng).values()) <= {1}


@given(
    st.lists(st.sampled_from(NAMES), min_size=1, unique=True),
    st.lists(SHAPES, min_size=1, max_size=8),
    st.randoms(),
)
def test_no_event_is_missed_however_configurations_change(
    names: list[str], shapes: list[dict[str, Any]], rng: random.Random
) -> None:
    landed = played([shape | {"collections": names} for shape in shapes], rng)
    for name in names:
        for hashed in range(6):
            times = [time for other, other_hash, time in landed if (other, other_hash) == (name, hashed)]
            assert len(times) == max(times, default=0) - min(times, default=1) + 1


def played(shapes: list[dict[str, Any]], rng: random.Random) -> Landed:
    """Play the open streams through all handovers; how often each event is read."""
    open_streams: dict[
        str, tuple[StreamSpec, int]
    ] = {}  # id -> selection, and the time up to which it has been read
    landed: Landed = {}
    time = 0
    for shape in shapes:
        desired = specs_of(shape)
        plan = find_succession(desired, {name: spec for name, (spec, _) in open_streams.items()})
        if plan is not None:
            time += 1
            for spec in plan.close:
                read(open_streams, spec.stream, time, landed)
                del open_streams[spec.stream]
            for spec in plan.open:
                open_streams[spec.stream] = (spec, time)
        for spec in desired:
            _, position = open_streams.get(spec.stream, (spec, time))
            open_streams[spec.stream] = (spec, position)
        time += 5
        for spec in desired:
            read(open_streams, spec.stream, time - rng.randrange(4), landed)
        live = [spec for spec, _ in open_streams.values()]
        for name in NAMES:
            for hashed in range(6):
                assert sum(covers(spec, name, hashed) for spec in live) <= 1
        assert all(not overlap(a, b) for a in desired for b in desired if a is not b and a.level == "collection")
    return landed


def read(open_streams: dict[str, tuple[StreamSpec, int]], stream: str, to: int, landed: Landed) -> None:
    spec, position = open_streams[stream]
    for time in range(position, to):
        for name in NAMES:
            for hashed in range(6):
                if covers(spec, name, hashed):
                    landed[name, hashed, time] = landed.get((name, hashed, time), 0) + 1
    open_streams[stream] = (spec, max(position, to))
