"""What is read from a reply: offsets, tokens, and events that the server split into fragments."""

from __future__ import annotations

from typing import Any

import bson
import pytest

from engine.source.reply import SplitEvents, cursor_of
from tests.source.replies import event, reply_of


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 99, 100, 101, 1234])
def test_offsets_of_a_batch(count: int) -> None:
    reply = reply_of([event(f"{n:04}", pad="x" * (n % 7)) for n in range(count)], "9999")
    assert len(reply) == count
    assert [bson.decode(reply.document(n))["_id"]["_data"] for n in range(count)] == [
        f"{n:04}" for n in range(count)
    ]
    assert (reply.token, *cursor_of(reply.data)) == ("9999", 7, "c")


def test_a_server_without_post_batch_tokens() -> None:
    assert reply_of([event("a"), event("b")]).last_token() == "b"
    assert reply_of([event("a")], "c").last_token() == "c"
    assert reply_of([]).last_token() == ""


def test_the_events_after_a_token() -> None:
    reply = reply_of([event("a"), event("b"), event("c")], "d").after("b")
    assert [reply.token_at(row) for row in range(len(reply))] == ["c"]
    assert reply.token == "d"


def fragments(token: str, of: int, **fields: Any) -> list[dict[str, Any]]:
    """An event split into fragments, each with some of the fields."""
    pieces = [event(f"{token}-{n}", splitEvent={"fragment": n, "of": of}) for n in range(1, of + 1)]
    for number, (name, value) in enumerate(fields.items()):
        pieces[number % of][name] = value
    return pieces


def test_split_events_are_put_together() -> None:
    big = "x" * (2 << 20)
    whole = event("b", fullDocument={"big": big}, ns={"db": "d"}, updateDescription={"y": 1})
    pieces = fragments("b", 3, fullDocument=whole["fullDocument"], ns=whole["ns"], updateDescription={"y": 1})
    joined = SplitEvents().join(reply_of([event("a"), *pieces, event("c")], "d"))
    found = [bson.decode(joined.document(row)) for row in range(len(joined))]
    assert [each["_id"]["_data"] for each in found] == ["a", "b-3", "c"]
    assert found[1] == whole | {"_id": {"_data": "b-3"}}
    assert next(iter(found[1])) == "_id"
    assert joined.token == "d"


def test_fragments_may_arrive_in_two_replies_with_no_token_between_them() -> None:
    pieces = fragments("b", 2, fullDocument={"big": "x" * (2 << 20)}, ns={"db": "d"})
    split = SplitEvents()
    first = split.join(reply_of([event("a"), pieces[0]], "b-1"))
    assert (len(first), first.token) == (1, "a")
    nothing = split.join(reply_of([], "b-1"))
    assert nothing.token == ""
    second = split.join(reply_of([pieces[1], event("c")], "c"))
    assert [second.token_at(row) for row in range(len(second))] == ["b-2", "c"]
    assert second.token == "c"


def test_a_reply_of_whole_events_is_left_alone() -> None:
    reply = reply_of([event("a"), event("b")], "c")
    assert SplitEvents().join(reply) is reply
