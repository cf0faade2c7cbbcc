"""Which collections a stream covers."""

from __future__ import annotations

from typing import Any

from engine.core.specs import StreamSpec


def test_what_a_stream_covers() -> None:
    shared = StreamSpec("s", "database", "shop", ("a", "b"))
    assert [shared.covers(*each) for each in (("shop", "a"), ("shop", "c"), ("other", "a"))] == [
        True,
        False,
        False,
    ]
    assert StreamSpec("s", "database", "shop").covers("shop", "c")
    assert not StreamSpec("s", "database", "shop").covers("other", "c")
    assert StreamSpec("s", "deployment").covers("other", "c")


PATTERNS = StreamSpec("s", "database", "shop", ("orders",), patterns=("events_*", "a?"), exclude=("events_x*",))


def test_what_a_stream_covers_by_pattern() -> None:
    names = ["orders", "events_", "events_1", "events_x", "events_x1", "ab", "abc", "Events_1", ""]
    assert [name for name in names if PATTERNS.covers("shop", name)] == ["orders", "events_", "events_1", "ab"]
    assert not PATTERNS.covers("other", "events_1")
    assert PATTERNS.named == ()


def test_what_a_stream_of_many_databases_covers() -> None:
    spec = StreamSpec("s", "deployment", patterns=("shop_*.*", "audit.log.*"), exclude=("*.tmp_*", "shop_9.*"))
    covered = [("shop_1", "a"), ("shop_1", "a.b"), ("shop_", "x"), ("audit", "log.1")]
    others = [
        ("shop", "a"),
        ("shop_1", "tmp_1"),
        ("shop_9", "a"),
        ("audit", "log"),
        ("audit", "x"),
        ("x", "shop_1.a"),
    ]
    assert [each for each in covered if not spec.covers(*each)] == []
    assert [each for each in others if spec.covers(*each)] == []


def test_whether_streams_meet() -> None:
    def spec(*patterns: str, level: Any = "database", exclude: tuple[str, ...] = (), **more: Any) -> StreamSpec:
        database = "" if level == "deployment" else "shop"
        return StreamSpec("s", level, database, patterns=patterns, exclude=exclude, **more)

    def named(*names: str, database: str = "shop") -> StreamSpec:
        return StreamSpec("n", "database", database, names)

    every = StreamSpec("d", "database", "shop")
    all_ = StreamSpec("a", "deployment")
    meeting = [
        (PATTERNS, named("orders")),
        (PATTERNS, named("x", "events_7")),
        (PATTERNS, every),
        (PATTERNS, all_),
        (spec("*a"), spec("b*")),
        (spec("*", exclude=("?",)), spec("??")),
        (spec("shop.*", level="deployment"), named("x")),
        (spec("s*.x", level="deployment"), spec("?")),
        (spec("s*.x", level="deployment"), spec("*p.*", level="deployment")),
        (every, StreamSpec("d", "database", "shop")),
    ]
    apart = [
        (PATTERNS, named("events_x", "items")),
        (PATTERNS, named("orders", database="other")),
        (PATTERNS, StreamSpec("d", "database", "other")),
        (spec("a*"), spec("b*")),
        (spec("*", exclude=("b*",)), spec("b?*")),
        (spec("*", exclude=(r"a\*",)), named("a*")),
        (spec("events_*", exclude=("events_a*",)), spec("events_a*")),
        (spec("s*.x", level="deployment"), spec("*.y", level="deployment")),
        (spec("*.*", level="deployment", exclude=("shop.*",)), every),
        (spec("*.*", level="deployment", exclude=("shop.*",)), named("x")),
    ]
    assert [each for each in meeting if not (each[0].meets(each[1]) and each[1].meets(each[0]))] == []
    assert [each for each in apart if each[0].meets(each[1]) or each[1].meets(each[0])] == []
