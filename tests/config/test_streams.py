"""Which streams a configuration stands for."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from engine.config import Secret, SourceConfig
from engine.config.streams import streams_of
from engine.core.handover import find_succession
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


def test_adding_a_collection_moves_no_other() -> None:
    before = [set(s.collections) for s in streams_of(source(max_readers=3))]
    after = [set(s.collections) for s in streams_of(source(max_readers=3, collections=[*NAMES, "f", "g"]))]
    assert [shared & set(NAMES) for shared in after if shared & set(NAMES)] == before


def test_a_shared_stream_is_named_after_what_it_carries() -> None:
    """Engines with different collections on one state store and one lake never share a stream id."""
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


def test_patterns_share_a_stream_beside_the_named_collections() -> None:
    keys = {"collections": ["orders", "events_*", "o?", "ox"], "split": {"ox": 2}, "exclude": ["events_t*"]}
    *parts, pattern, orders = streams_of(source(**keys))
    assert [each.stream for each in parts] == ["shop.ox~0of2", "shop.ox~1of2"]
    assert (pattern.patterns, pattern.exclude) == (("events_*", "o?"), ("events_t*", "ox"))
    assert (pattern.level, pattern.collections, pattern.carries_database) == ("database", (), True)
    assert orders.stream == "shop.orders"
    fewer = streams_of(source(**keys, max_readers=3))[-1]
    assert (fewer.collections, fewer.patterns, fewer.exclude) == (
        ("orders",),
        ("events_*", "o?"),
        ("events_t*", "ox"),
    )
    shared = streams_of(source(collections=["events_*", *NAMES], max_readers=3))
    assert [each.carries_database for each in shared] == [True, False, False]


def test_a_stream_of_patterns_is_named_after_what_it_selects() -> None:
    """Neither the order nor a collection that no pattern matches makes another stream of it."""
    made = {
        ids(**keys)[0]
        for keys in (
            {"collections": ["a*", "b*"]},
            {"collections": ["b*", "a*", "x"]},
            {"collections": ["a*", "b*", "ax"]},
            {"collections": ["a*", "b*"], "exclude": ["ab"]},
            {"collections": ["a*", "bx*"]},
            {"collections": ["a*", r"b\*"]},
            {"watch": "database", "collections": [], "exclude": ["a*"]},
            {"watch": "deployment", "collections": [], "exclude": ["shop.a*"]},
            {"watch": "deployment", "collections": ["shop.*"]},
        )
    }
    assert len(made) == 8
    assert all(len(each.partition("~")[2]) == 12 for each in made)
    assert sum(each.startswith("deployment~") for each in made) == 2


def test_too_many_parts() -> None:
    with pytest.raises(
        ConfigError, match=r"source.split needs 4 readers, and 4 collection\(s\) need at least one more"
    ):
        ids(max_readers=4, split={"a": 4})


def test_the_pipeline_becomes_extended_json() -> None:
    stages = [{"$match": {"at": {"$gt": datetime(2026, 5, 1, tzinfo=UTC)}}}]
    (spec, *_) = streams_of(source(pipeline=stages))
    assert spec.pipeline == '[{"$match":{"at":{"$gt":{"$date":"2026-05-01T00:00:00+00:00"}}}}]'


def running(**keys: Any) -> dict[str, StreamSpec]:
    return {spec.stream: spec for spec in streams_of(source(**keys))}
