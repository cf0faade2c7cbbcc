"""What a stream's record says after each change to it."""

from __future__ import annotations

import pytest

from engine.core import records
from engine.core.ledger import WriteCommit
from engine.core.messages import (
    Intent,
    ObjectName,
)
from engine.core.position import Position
from engine.core.records import begin, intended, read_record
from engine.core.specs import SplitSpec, StreamSpec
from engine.errors import StateLostError

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


def whole() -> dict[str, str]:
    """A record with an intent."""
    spec = StreamSpec("shop.a", "collection", "shop", ("a",))
    at = Position("82" + "0" * 15 + "5", 5)
    put = begin(spec, "s3://lake", "rs0", at).put | {"seq": "7", "rows": "3", "updated": "1.5"}
    return put | intended(Intent(8, "t", at), {"schema:shop.a": 1}).put


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("position", '{"token":"82'),
        ("position", None),
        ("spec", "{}"),
        ("spec", None),
        ("seq", "x"),
        ("seq", "9"),
        ("seq", None),
        ("rows", "many"),
        ("updated", "never"),
        ("format", "2.0"),
        ("format", ""),
        ("intent:000000000008", "{}"),
        ("intent:000000000010", '{"seq":10,"first_token":null,"end":{}}'),
        ("schema:shop.a", "one"),
        ("replaced:shop.a", "then"),
    ],
)
def test_a_damaged_record_is_not_used(name: str, text: str | None) -> None:
    """Read as far as it goes, it would be taken for that of a new stream, or for another's."""
    assert read_record(whole()).seq == 7
    fields = whole() | ({} if text is None else {name: text})
    if text is None:
        del fields[name]
    with pytest.raises(StateLostError, match="damaged") as caught:
        read_record(fields)
    assert caught.value.remedy


def test_a_spec_that_an_older_version_has_rewritten_is_read() -> None:
    """It leaves the format of the record as it is."""
    old = '{"stream":"shop.a","level":"collection","database":"shop","collections":["a"],"pipeline":"[{}]"}'
    record = read_record(whole() | {"spec": old})
    assert record.spec == StreamSpec("shop.a", "collection", "shop", ("a",), pipeline="[{}]")
    split = (
        '{"stream":"s","level":"split","database":"shop","collections":["a"],"lower":"","upper":"0a","closes":0}'
    )
    assert read_record(whole() | {"spec": split}).spec == SplitSpec("s", "shop", "a", None, "0a")
