"""Change streams on a real server are resumed after every resumable error."""

from __future__ import annotations

from typing import Any

import bson
import pytest
from bson import ObjectId
from msgspec.structs import replace

from engine.core.position import Position, token_time
from engine.core.specs import StreamSpec
from engine.errors import ConfigError, FatalError, HeadraceError, StreamLostError, TransientError
from engine.source.change_stream import ChangeStream
from engine.source.session import starting_position
from tests.failing import Client, failing


@pytest.fixture
def spec(unique: str) -> StreamSpec:
    return StreamSpec(f"{unique}.c", "collection", unique, ("c",))


@pytest.fixture
def start(client: Client) -> Position:
    return starting_position(client, "now")


def drain(stream: ChangeStream, count: int) -> list[dict[str, Any]]:
    """Read this many events, calling again after every transient error."""
    events: list[dict[str, Any]] = []
    for _ in range(100):
        try:
            reply = stream.next()
        except TransientError:
            continue
        events += [bson.decode(reply.document(row)) for row in range(len(reply))]
        if len(events) >= count:
            return events
    raise AssertionError(f"{len(events)} of {count} events")


def test_events_in_order_with_their_tokens(client: Client, spec: StreamSpec, start: Position) -> None:
    client[spec.database].c.insert_many([{"_id": n} for n in range(1000)])
    stream = ChangeStream(client, spec, start)
    assert [event["documentKey"]["_id"] for event in drain(stream, 1000)] == list(range(1000))
    stream.close()


def test_a_reply_says_how_far_the_server_has_read(client: Client, spec: StreamSpec, start: Position) -> None:
    stream = ChangeStream(client, spec, start)
    reply = stream.next()
    assert len(reply) == 0
    before = reply.token
    client[spec.database].other.insert_one({})
    while (token := stream.next().token) == before:
        pass
    assert token > before
    stream.close()


@pytest.mark.parametrize(
    "error",
    [
        {"errorCode": 43},
        {"errorCode": 2, "errorLabels": ["ResumableChangeStreamError"]},
        {"closeConnection": True},
        {"errorCode": 234},
        {"errorCode": 280},  # the token's time can still be used
        # Caused by administrators: CursorKilled, Interrupted.
        {"errorCode": 237},
        {"errorCode": 11601},
        # InternalError, UnknownError, LockTimeout, MaxTimeMSExpired, OperationFailed, WriteConflict,
        # CappedPositionLost, NetworkInterfaceExceededTimeLimit, KeyNotFound, SnapshotUnavailable, and one that
        # this server has no name for.
        *({"errorCode": code} for code in (1, 8, 24, 50, 96, 112, 136, 202, 211, 246, 365)),
    ],
    ids=str,
)
def test_resumes_in_the_middle(client: Client, spec: StreamSpec, start: Position, error: dict[str, Any]) -> None:
    client[spec.database].c.insert_many([{"_id": n} for n in range(500)])
    stream = ChangeStream(client, spec, start)
    first = stream.next()
    with failing(client, "getMore", 2, **error):
        rest = drain(stream, 500 - len(first))
    assert [event["documentKey"]["_id"] for event in rest] == list(range(len(first), 500))
    stream.close()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"errorCode": 286}, StreamLostError),
        ({"errorCode": 13}, ConfigError),
        ({"errorCode": 18}, ConfigError),
        ({"errorCode": 2}, ConfigError),
        ({"errorCode": 16608}, ConfigError),
    ],
    ids=str,
)
def test_does_not_resume_what_is_not_resumable(
    client: Client, spec: StreamSpec, start: Position, error: dict[str, Any], kind: type[HeadraceError]
) -> None:
    stream = ChangeStream(client, spec, start)
    stream.next()
    with failing(client, "getMore", 1, **error), pytest.raises(kind):
        stream.next()
    stream.close()


def test_an_event_that_remains_too_large_has_a_remedy(client: Client, spec: StreamSpec, start: Position) -> None:
    stream = ChangeStream(client, spec, start)
    stream.next()
    with failing(client, "getMore", 2, errorCode=10334), pytest.raises(FatalError, match=r"source\.pipeline"):
        drain(stream, 1)
    stream.close()


def test_resumes_from_a_token_and_from_a_time(client: Client, spec: StreamSpec, start: Position) -> None:
    client[spec.database].c.insert_many([{"_id": n} for n in range(10)])
    stream = ChangeStream(client, spec, start)
    events = drain(stream, 10)
    stream.close()
    token, time = events[4]["_id"]["_data"], events[4]["clusterTime"]
    at = Position(token, time.time << 32 | time.inc)
    for position in (at, Position(token, at.time, exact=False)):
        stream = ChangeStream(client, spec, position)
        assert [event["documentKey"]["_id"] for event in drain(stream, 5)] == [5, 6, 7, 8, 9]
        stream.close()


def test_a_refused_start_time_means_lost_history(client: Client, spec: StreamSpec, start: Position) -> None:
    with failing(client, "aggregate", 1, errorCode=280), pytest.raises(StreamLostError):
        ChangeStream(client, spec, start).next()


@pytest.mark.parametrize("exact", [True, False], ids=["refused", "known to be left out"])
def test_a_token_outside_the_selection_is_found_by_its_time(
    client: Client, spec: StreamSpec, start: Position, exact: bool
) -> None:
    client[spec.database].c.insert_many([{"_id": n} for n in range(10)])
    stream = ChangeStream(client, spec, start)
    fourth = drain(stream, 10)[4]
    stream.close()
    other = StreamSpec(
        spec.stream, "collection", spec.database, ("c",), pipeline='[{"$match":{"documentKey._id":{"$gt":6}}}]'
    )
    time = fourth["clusterTime"]
    at = Position(fourth["_id"]["_data"], time.time << 32 | time.inc, exact=exact)
    found = drain(ChangeStream(client, other, at), 3)
    assert [event["documentKey"]["_id"] for event in found] == [7, 8, 9]


def test_events_of_one_cluster_time_are_not_read_twice(client: Client, spec: StreamSpec, start: Position) -> None:
    """The events of a transaction have the same cluster time, and come in several replies."""
    collection = client[spec.database][spec.collections[0]]
    collection.insert_one({"n": -1})
    with client.start_session() as session, session.start_transaction():
        collection.insert_many([{"n": n} for n in range(300)], session=session)
    stream = ChangeStream(client, spec, start)
    drain(stream, 301)
    last = stream.next().position
    while last is None:
        last = stream.next().position
    stream.close()
    for committed in (201, 300):
        stream = ChangeStream(client, spec, start)
        token = drain(stream, 301)[committed]["_id"]["_data"]
        stream.close()
        again = ChangeStream(client, spec, Position(token, token_time(token) or 0, exact=False))
        collection.insert_one({"n": 1000 + committed})
        expected = [*range(committed, 300), *(1000 + each for each in (201, 300) if each <= committed)]
        found = [event["fullDocument"]["n"] for event in drain(again, len(expected))]
        assert found == expected
        again.close()


def test_an_invalidate_is_passed_with_another_selection(client: Client, spec: StreamSpec, start: Position) -> None:
    collection = client[spec.database][spec.collections[0]]
    collection.insert_one({"n": 1})
    collection.drop()
    stream = ChangeStream(client, spec, start)
    token = drain(stream, 3)[-1]["_id"]["_data"]
    stream.close()
    again = ChangeStream(client, spec, Position(token, token_time(token) or 0, after_invalidate=True, exact=False))
    collection.insert_one({"n": 2})
    for _ in range(20):
        if len(reply := again.next()):
            break
    assert [bson.decode(reply.document(row))["fullDocument"]["n"] for row in range(len(reply))] == [2]
    again.close()


def test_every_document_is_in_one_part(client: Client, spec: StreamSpec, start: Position) -> None:
    ids: list[Any] = [
        *range(-50, 50),
        *(str(n) for n in range(50)),
        *(ObjectId() for _ in range(50)),
        None,
        1.5,
        {"a": 1},
    ]
    client[spec.database].c.insert_many([{"_id": each} for each in ids])
    client[spec.database].c.drop()
    found: list[Any] = []
    for part in range(3):
        one = StreamSpec(f"{spec.stream}~{part}of3", "collection", spec.database, ("c",), part, 3)
        stream = ChangeStream(client, one, start)
        reply = stream.next()
        while True:
            events = [bson.decode(reply.document(row)) for row in range(len(reply))]
            found += [(event["operationType"], str(event.get("documentKey"))) for event in events]
            if reply.ends_invalidated:
                break
            reply = stream.next()
        stream.close()
        # Whatever its part, each stream is ended by the invalidate, and continues after it.
        again = ChangeStream(client, one, reply.position or start)
        assert len(again.next()) == 0
        again.close()
    assert sorted(found) == sorted(
        [("insert", str({"_id": each})) for each in ids] + [("drop", "None"), ("invalidate", "None")]
    )


@pytest.mark.parametrize("key", ["full_document", "full_document_before_change"])
def test_a_required_document_that_is_missing_is_named_with_its_key(
    client: Client, spec: StreamSpec, start: Position, key: str
) -> None:
    """Without a label that tells: the server's error is that of a look-up."""
    client[spec.database].c.insert_one({"_id": 1})
    client[spec.database].c.update_one({"_id": 1}, {"$set": {"n": 1}})
    stream = ChangeStream(client, replace(spec, **{key: "required"}), start)
    with pytest.raises(FatalError, match=f'Set source.{key} to "when_available"'):
        drain(stream, 2)
    stream.close()
    other = {"full_document": "full_document_before_change"}.get(key, "full_document")
    stream = ChangeStream(client, replace(spec, **{key: "when_available", other: "when_available"}), start)
    assert [event["operationType"] for event in drain(stream, 2)] == ["insert", "update"]
    stream.close()
