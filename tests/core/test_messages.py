"""Messages between processes survive their encoding."""

from __future__ import annotations

from engine.core.messages import (
    Assign,
    Batch,
    FromChild,
    Grant,
    Heartbeat,
    Intent,
    ObjectName,
    Sealed,
    SegmentCut,
    ToChild,
    decode_from_child,
    decode_to_child,
    encode,
)
from engine.core.position import Position
from engine.core.specs import StreamSpec

TO_CHILD: tuple[ToChild, ...] = (
    Assign(StreamSpec("s", "collection"), 1, Position("t", 5), "now", 3, (Intent(3, "", Position("u")),)),
    Batch("s", 1, 2, 4096, 100),
    Grant(1, 2, 3),
)
FROM_CHILD: tuple[FromChild, ...] = (
    SegmentCut(1, Intent(3, "a", Position("u"), (ObjectName("k"),), 7), "full"),
    Sealed("s", 1, 2, (ObjectName("k", "d", "c", True),), 6, 7),
    Heartbeat(1, "x", 0.5),
)


def test_messages_survive_a_round_trip() -> None:
    for to_child in TO_CHILD:
        assert decode_to_child(encode(to_child)) == to_child
    for from_child in FROM_CHILD:
        assert decode_from_child(encode(from_child)) == from_child
