"""What a stream's record says after each change to it."""

from __future__ import annotations

from engine.core import records
from engine.core.ledger import WriteCommit
from engine.core.messages import (
    Intent,
    ObjectName,
)
from engine.core.position import Position
from engine.core.specs import StreamSpec

SPEC = StreamSpec("shop.orders", "collection", "shop", ("orders",))


def test_a_stream_from_begin_to_commit() -> None:
    fields: dict[str, str] = {}
    intent = Intent(1, "a", Position("82b", 2), (ObjectName("k", "shop", "orders"),), 3)
    for change in (
        records.begin(SPEC, "s3://x", "rs0", Position(time=1)),
        records.intended(intent, {}),
        records.intended(Intent(2, "c", Position("82d", 4)), {}),
        records.committed(WriteCommit(1, intent.end, (1,), 3), 3),
    ):
        fields.update(change.put)
        for name in change.remove:
            fields.pop(name, None)
    record = records.read_record(fields)
    assert (record.spec, record.sink, record.deployment) == (SPEC, "s3://x", "rs0")
    assert (record.position, record.seq, record.rows) == (intent.end, 1, 3)
    assert [each.seq for each in record.intents] == [2]


def test_no_record() -> None:
    assert records.read_record({}) == records.StreamRecord()


def test_a_closed_stream_opens_again() -> None:
    fields = records.close("h").put
    assert records.read_record(fields).closed
    begin = records.begin(SPEC, "", "", None)
    assert not records.read_record({k: v for k, v in fields.items() if k not in begin.remove}).closed
