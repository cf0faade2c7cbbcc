"""Which collections a stream covers."""

from __future__ import annotations

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
