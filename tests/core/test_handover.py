"""Which streams a configuration means, and how they hand over to those of another."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import Secret, SourceConfig
from engine.config.streams import streams_of
from engine.core.handover import find_succession, overlap
from engine.core.specs import StreamSpec
from engine.errors import ConfigError

NAMES = ["a", "b", "c", "d", "e"]


def source(**keys: Any) -> SourceConfig:
    return SourceConfig(uri=Secret("mongodb://h"), **({"database": "shop", "collections": NAMES} | keys))


def ids(**keys: Any) -> list[str]:
    return [spec.stream for spec in streams_of(source(**keys))]


def test_a_stream_per_collection_while_there_are_readers() -> None:
    assert ids() == [f"shop.{name}" for name in NAMES]


def test_a_split_collection_has_a_stream_per_part() -> None:
    assert ids(split={"a": 2}) == ["shop.a~0of2", "shop.a~1of2", "shop.b", "shop.c", "shop.d", "shop.e"]


def test_more_collections_than_readers_share_streams() -> None:
    specs = streams_of(source(max_readers=2))
    assert len(specs) <= 2
    assert sorted(name for spec in specs for name in spec.collections) == NAMES
    assert {spec.level for spec in specs} == {"database"}
    assert sum(spec.carries_database for spec in specs) == 1


def test_another_collection_moves_no_other() -> None:
    before = [set(s.collections) for s in streams_of(source(max_readers=3))]
    after = [set(s.collections) for s in streams_of(source(max_readers=3, collections=[*NAMES, "f", "g"]))]
    assert [shared & set(NAMES) for shared in after if shared & set(NAMES)] == before


def test_a_shared_stream_is_called_by_what_it_carries() -> None:
    """Two engines with different collections on one state store and one lake never mean the same stream."""
    one = ids(max_readers=2, collections=[f"a{n}" for n in range(9)])
    other = ids(max_readers=2, collections=[f"b{n}" for n in range(9)])
    assert not set(one) & set(other)
    assert ids(max_readers=2, collections=[f"a{n}" for n in reversed(range(9))]) == one
    assert (
        find_succession(
            streams_of(source(max_readers=2, collections=[f"a{n}" for n in range(9)])),
            running(max_readers=2, collections=[f"b{n}" for n in range(9)]),
        )
        is None
    )


def test_split_collections_keep_their_streams_when_others_are_packed() -> None:
    specs = streams_of(source(max_readers=3, split={"a": 2}))
    assert [spec.stream for spec in specs[:2]] == ["shop.a~0of2", "shop.a~1of2"]
    assert specs[2].collections == ("b", "c", "d", "e")


def test_levels() -> None:
    assert ids(watch="database", collections=[]) == ["shop"]
    assert ids(watch="deployment", collections=[], database="") == ["deployment~"]


def test_too_many_parts() -> None:
    with pytest.raises(
        ConfigError, match=r"source.split needs 4 readers, and 4 collection\(s\) at least one more"
    ):
        ids(max_readers=4, split={"a": 4})


def test_the_pipeline_becomes_extended_json() -> None:
    stages = [{"$match": {"at": {"$gt": datetime(2026, 5, 1, tzinfo=UTC)}}}]
    (spec, *_) = streams_of(source(pipeline=stages))
    assert spec.pipeline == '[{"$match":{"at":{"$gt":{"$date":"2026-05-01T00:00:00+00:00"}}}}]'


def running(**keys: Any) -> dict[str, StreamSpec]:
    return {spec.stream: spec for spec in streams_of(source(**keys))}


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


def test_going_to_the_database_closes_everything_in_it() -> None:
    assert handover({}, {"watch": "database", "collections": []}) == ([f"shop.{n}" for n in NAMES], ["shop"])


def test_a_collection_that_comes_back_into_a_pack_reopens_the_pack() -> None:
    """``a`` had a stream of its own, was dropped from the configuration, and returns when there are packs."""
    old = running(max_readers=1, collections=["b", "c"]) | running(collections=["a"])
    desired = streams_of(source(max_readers=1, collections=["a", "b", "c"]))
    plan = find_succession(desired, old)
    assert plan is not None
    assert {spec.stream for spec in plan.close} == set(old)
    assert list(plan.open) == desired


def test_what_concerns_the_database_goes_on_where_it_was() -> None:
    """The stream that brings it may begin with another collection, which nobody has read before."""
    old = running(max_readers=2)
    (former,) = [spec for spec in old.values() if spec.carries_database]
    for number in range(100):
        desired = streams_of(source(max_readers=2, collections=[*NAMES, f"new{number}"]))
        plan = find_succession(desired, old)
        assert plan is not None
        if former in plan.close:
            assert any(spec.carries_database for spec in plan.open)


SHAPES = st.fixed_dictionaries(
    {
        "collections": st.lists(st.sampled_from(NAMES), min_size=1, unique=True),
        "max_readers": st.integers(1, 6),
        "parts": st.integers(1, 3),
        "watch": st.sampled_from(["collections", "collections", "database"]),
    }
)


def specs_of(shape: dict[str, Any]) -> list[StreamSpec]:
    if shape["watch"] == "database":
        return streams_of(source(watch="database", collections=[]))
    split = {shape["collections"][0]: shape["parts"]} if shape["parts"] < shape["max_readers"] else {}
    return streams_of(source(collections=shape["collections"], max_readers=shape["max_readers"], split=split))


def covers(spec: StreamSpec, name: str, hashed: int) -> bool:
    if spec.level == "database":
        return not spec.collections or name in spec.collections
    return name in spec.collections and hashed % spec.parts == spec.part


Landed = dict[tuple[str, int, int], int]


@given(st.lists(SHAPES, min_size=1, max_size=8), st.randoms())
def test_however_shapes_change_no_event_is_covered_twice(shapes: list[dict[str, Any]], rng: random.Random) -> None:
    assert set(played(shapes, rng).values()) <= {1}


@given(
    st.lists(st.sampled_from(NAMES), min_size=1, unique=True),
    st.lists(SHAPES, min_size=1, max_size=8),
    st.randoms(),
)
def test_however_shapes_change_no_event_is_left_out(
    names: list[str], shapes: list[dict[str, Any]], rng: random.Random
) -> None:
    landed = played([shape | {"collections": names} for shape in shapes], rng)
    for name in names:
        for hashed in range(6):
            times = [time for other, other_hash, time in landed if (other, other_hash) == (name, hashed)]
            assert len(times) == max(times, default=0) - min(times, default=1) + 1


def played(shapes: list[dict[str, Any]], rng: random.Random) -> Landed:
    """Play the store's open streams through the handovers: how often each event is read."""
    open_streams: dict[str, tuple[StreamSpec, int]] = {}  # id -> selection, time up to which it has read
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
