"""Change streams on a real server: resumed after every error that the specification calls resumable."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import bson
import pytest
from bson import ObjectId
from bson.timestamp import Timestamp
from pymongo import MongoClient

from bench.local.servers import wait_until
from engine.config import RetryConfig
from engine.core.position import Position, split_time, token_time
from engine.core.specs import StreamSpec
from engine.errors import ConfigError, FatalError, HeadraceError, StreamLostError, TransientError
from engine.rawbson.elements import MalformedBSON, elements, find, value_size
from engine.rawbson.offsets import document_offsets
from engine.source.change_stream import ChangeStream
from engine.source.prefetch import Prefetcher
from engine.source.reply import Reply, SplitEvents, cursor_of
from engine.source.session import server_time, starting_position, survey

Client = MongoClient[dict[str, Any]]
QUICK = RetryConfig(max_attempts=5, initial_delay=0.01, max_delay=0.05)  # type: ignore[arg-type]


@pytest.fixture
def spec(unique: str) -> StreamSpec:
    return StreamSpec(f"{unique}.c", "collection", unique, ("c",))


@pytest.fixture
def start(client: Client) -> Position:
    return starting_position(client, "now")


@contextmanager
def failing(client: Client, command: str, times: int, **error: Any) -> Iterator[None]:
    """The server fails a command so many times."""
    data = {"failCommands": [command]} | error
    client.admin.command("configureFailPoint", "failCommand", mode={"times": times}, data=data)
    try:
        yield
    finally:
        client.admin.command("configureFailPoint", "failCommand", mode="off")


def drain(stream: ChangeStream, count: int) -> list[dict[str, Any]]:
    """So many events; every transient error is answered by another call."""
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


def test_survey(client: Client) -> None:
    found = survey(client)
    assert found.deployment == "rs0"
    assert found.server_version == "6.0.5"
    assert found.server_time == server_time(client)


def test_events_in_order_with_their_tokens(client: Client, spec: StreamSpec, start: Position) -> None:
    client[spec.database].c.insert_many([{"_id": n} for n in range(1000)])
    stream = ChangeStream(client, spec, start)
    assert [event["documentKey"]["_id"] for event in drain(stream, 1000)] == list(range(1000))
    stream.close()


def test_a_reply_knows_how_far_the_server_has_looked(client: Client, spec: StreamSpec, start: Position) -> None:
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
        {"errorCode": 280},  # there is still the token's time
        # What an administrator does: CursorKilled, Interrupted.
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


def test_names_the_remedy_for_an_event_that_stays_too_large(
    client: Client, spec: StreamSpec, start: Position
) -> None:
    stream = ChangeStream(client, spec, start)
    stream.next()
    with failing(client, "getMore", 2, errorCode=10334), pytest.raises(FatalError, match=r"source\.pipeline"):
        drain(stream, 1)
    stream.close()


def test_goes_on_from_a_token_and_from_a_time(client: Client, spec: StreamSpec, start: Position) -> None:
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


def test_a_time_that_is_refused_is_lost(client: Client, spec: StreamSpec, start: Position) -> None:
    with failing(client, "aggregate", 1, errorCode=280), pytest.raises(StreamLostError):
        ChangeStream(client, spec, start).next()


@pytest.mark.parametrize("exact", [True, False], ids=["refused", "known to be left out"])
def test_a_token_that_the_selection_leaves_out_is_found_by_its_time(
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


def test_what_was_taken_at_one_time_is_not_taken_again(client: Client, spec: StreamSpec, start: Position) -> None:
    """A transaction's events all have one time, and come in more replies than one."""
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


def test_an_invalidate_is_passed_under_another_selection(
    client: Client, spec: StreamSpec, start: Position
) -> None:
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
        # Whatever its own part, each stream was ended by the invalidate, and goes on behind it.
        again = ChangeStream(client, one, reply.position or start)
        assert len(again.next()) == 0
        again.close()
    assert sorted(found) == sorted(
        [("insert", str({"_id": each})) for each in ids] + [("drop", "None"), ("invalidate", "None")]
    )


def test_a_passing_error_is_no_lack_of_rights(client: Client) -> None:
    """To find the oldest event there are two ways; neither is closed for good."""
    interrupted = {"appName": "headrace", "errorCode": 11601}
    with failing(client, "find", 1, **interrupted):
        assert starting_position(client, "earliest").time
    data = {"failCommands": ["find", "serverStatus"]} | interrupted
    client.admin.command("configureFailPoint", "failCommand", mode={"times": 2}, data=data)
    with pytest.raises(TransientError, match="11601"):
        starting_position(client, "earliest")


def test_starting_positions(client: Client) -> None:
    now = starting_position(client, "now")
    assert now.time == server_time(client) + 1
    oldest = client.local["oplog.rs"].find_one(sort=[("$natural", 1)])
    assert oldest is not None
    assert Timestamp(*split_time(starting_position(client, "earliest").time)) == oldest["ts"]
    assert split_time(starting_position(client, "2026-05-01T09:00:59+02:00").time) == (1777618859, 0)


# --- replies, and what no server of ours makes ---------------------------------------------------------------


def reply_of(events: list[dict[str, Any]], token: str = "", **cursor: Any) -> Reply:
    body: dict[str, Any] = {"nextBatch": events, "id": bson.Int64(7), "ns": "d.c"} | cursor
    if token:
        body["postBatchResumeToken"] = {"_data": token}
    return Reply.parse(bson.encode({"cursor": body, "ok": 1.0}))


def event(token: str, **fields: Any) -> dict[str, Any]:
    return {"_id": {"_data": token}, "operationType": "insert", **fields}


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 99, 100, 101, 1234])
def test_offsets_of_a_batch(count: int) -> None:
    reply = reply_of([event(f"{n:04}", pad="x" * (n % 7)) for n in range(count)], "9999")
    assert len(reply) == count
    assert [bson.decode(reply.document(n))["_id"]["_data"] for n in range(count)] == [
        f"{n:04}" for n in range(count)
    ]
    assert (reply.token, *cursor_of(reply.data)) == ("9999", 7, "c")


@pytest.mark.parametrize("count", [1499, 1500, 9_999, 10_001, 30_000])
def test_offsets_of_a_long_batch_with_documents_that_look_like_others(count: int) -> None:
    """Guesses at where documents begin may be wrong; what comes of them is not."""
    decoys = {"list": [{"a": n} for n in range(3)], "text": "\x03999\x00\x031000\x00", "bin": b"\x032000\x00" * 3}
    documents = [
        bson.encode({"n": n, "pad": "x" * (n % 97)} | (decoys if n % 5 == 0 else {})) for n in range(count)
    ]
    body = b"".join(b"\x03%d\0%b" % (n, document) for n, document in enumerate(documents))
    data = b"head" + struct.pack("<i", len(body) + 5) + body + b"\0" + bytes(64)
    offsets = document_offsets(data, 4)
    assert len(offsets) == count + 1
    for n, document in enumerate(documents):
        assert data[offsets[n] : offsets[n] + len(document)] == document
    broken = bytearray(data)
    broken[int(offsets[count // 3])] ^= 1
    with pytest.raises(MalformedBSON):
        document_offsets(bytes(broken), 4)


def test_a_server_without_post_batch_tokens() -> None:
    assert reply_of([event("a"), event("b")]).last_token() == "b"
    assert reply_of([event("a")], "c").last_token() == "c"
    assert reply_of([]).last_token() == ""


def test_the_events_behind_a_token() -> None:
    reply = reply_of([event("a"), event("b"), event("c")], "d").after("b")
    assert [reply.token_at(row) for row in range(len(reply))] == ["c"]
    assert reply.token == "d"


def fragments(token: str, of: int, **fields: Any) -> list[dict[str, Any]]:
    """An event as a server splits it: each fragment with some of the fields."""
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


def test_fragments_may_come_in_two_replies_and_no_token_lies_between() -> None:
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


class TestPrefetcher:
    class Scripted:
        """A stream that does what the test says."""

        def __init__(self, script: list[Reply | HeadraceError]) -> None:
            self.script = script
            self.closed = threading.Event()
            self.calls = 0
            self.unanswered_s = 0.0

        def next(self) -> Reply:
            self.calls += 1
            step = self.script.pop(0) if self.script else reply_of([])
            if isinstance(step, HeadraceError):
                raise step
            return step

        def close(self) -> None:
            self.closed.set()

    def taken(self, prefetcher: Prefetcher) -> Reply:
        from multiprocessing.connection import wait

        while (reply := prefetcher.take()) is None:  # as the reader does it
            assert wait([prefetcher.fileno()], 10)
        return reply

    def test_transient_errors_are_retried(self) -> None:
        away = TransientError("read", "away")
        stream = self.Scripted([away, away, reply_of([event("a")])])
        prefetcher = Prefetcher(stream, QUICK)
        assert len(self.taken(prefetcher)) == 1
        prefetcher.stop()
        assert stream.closed.wait(10)

    def test_they_are_not_retried_for_ever(self) -> None:
        stream = self.Scripted([TransientError("read", "away")] * 99)
        prefetcher = Prefetcher(stream, QUICK)
        with pytest.raises(FatalError, match=r"longer than the \[retry\] budget"):
            self.taken(prefetcher)
        assert stream.calls == 5
        assert stream.closed.wait(10)
        prefetcher.stop()

    def test_a_cursor_that_can_be_opened_and_not_be_read_is_not_opened_for_ever(self) -> None:
        away = TransientError("read", "killed")
        script: list[Reply | HeadraceError] = [reply_of([], "t"), away]
        stream = self.Scripted(script * 99)
        prefetcher = Prefetcher(stream, QUICK)
        for _ in range(5):
            self.taken(prefetcher)
        with pytest.raises(FatalError, match=r"longer than the \[retry\] budget"):
            self.taken(prefetcher)
        assert stream.calls == 10
        prefetcher.stop()

    def test_who_waits_for_the_next_attempt_does_not_hang(self) -> None:
        """An attempt and the delay behind it may take longer than ``supervision.hang_timeout``."""
        stream = self.Scripted([TransientError("read", "away")])
        patient = RetryConfig(max_attempts=2, initial_delay=600, max_delay=600)  # type: ignore[arg-type]
        prefetcher = Prefetcher(stream, patient)
        wait_until(lambda: prefetcher.progress > 2, "progress")
        assert stream.calls == 1
        prefetcher.stop()
        assert stream.closed.wait(10)

    def test_the_reply_behind_a_large_one_is_read_when_that_is_done_with(self) -> None:
        large = [Reply(bytes(13 << 20), document_offsets(bson.encode({}), 0), token) for token in "ab"]
        stream = self.Scripted([*large, reply_of([event("c")], "c")])
        prefetcher = Prefetcher(stream, QUICK)
        for calls, token in enumerate("ab", start=1):
            assert self.taken(prefetcher).token == token
            time.sleep(0.3)  # long enough for another call, were one made
            assert stream.calls == calls
        assert self.taken(prefetcher).token == "c"
        prefetcher.stop()
        assert stream.closed.wait(10)

    def test_stopped_while_a_large_reply_is_in_use(self) -> None:
        stream = self.Scripted([Reply(bytes(13 << 20), document_offsets(bson.encode({}), 0), "a")])
        prefetcher = Prefetcher(stream, QUICK)
        self.taken(prefetcher)
        prefetcher.stop()
        assert stream.closed.wait(10)
        assert stream.calls == 1

    def test_other_errors_come_through_at_once(self) -> None:
        stream = self.Scripted([StreamLostError("read", "gone")])
        prefetcher = Prefetcher(stream, QUICK)
        with pytest.raises(StreamLostError):
            self.taken(prefetcher)
        prefetcher.stop()

    def test_nothing_is_read_while_nobody_takes(self) -> None:
        stream = self.Scripted([reply_of([event("a")]) for _ in range(9)])
        prefetcher = Prefetcher(stream, QUICK)
        threading.Event().wait(0.3)
        assert stream.calls == 2  # one in the queue, one in hand
        self.taken(prefetcher)
        threading.Event().wait(0.3)
        assert stream.calls == 3
        prefetcher.stop()
        assert stream.closed.wait(10)


class TestElements:
    DOCUMENT = bson.encode(
        {
            "d": 1.5,
            "s": "é",
            "o": {"x": 1},
            "a": [1],
            "b": b"12",
            "i": ObjectId(),
            "t": True,
            "n": None,
            "l": bson.Int64(1),
        }
        | {
            "r": bson.Regex("a", "i"),
            "c": bson.Code("x"),
            "m": bson.MinKey(),
            "x": bson.MaxKey(),
            "ts": Timestamp(1, 2),
        }
        | {"cs": bson.Code("x", {"y": 1}), "de": bson.Decimal128("1"), "da": bson.DatetimeMS(5), "i3": 3}
    )

    def test_all_elements_of_a_document(self) -> None:
        found = list(elements(self.DOCUMENT, 0))
        assert [name.decode() for _, name, _, _ in found] == list(bson.decode(self.DOCUMENT))
        for kind, _, at, end in found:
            assert value_size(self.DOCUMENT, kind, at) == end - at
        assert found[-1][3] == len(self.DOCUMENT) - 1
        assert find(self.DOCUMENT, 0, b"nothing") is None

    def test_no_cut_or_changed_byte_makes_it_read_outside(self) -> None:
        for cut in range(len(self.DOCUMENT)):
            data = self.DOCUMENT[:cut]
            with pytest.raises((MalformedBSON, struct.error, IndexError)):
                list(elements(data, 0))
        for at in range(len(self.DOCUMENT)):
            for byte in (0, 1, 0x7F, 0xFF):
                data = self.DOCUMENT[:at] + bytes([byte]) + self.DOCUMENT[at + 1 :]
                with suppress(MalformedBSON, struct.error, IndexError):
                    assert all(end <= len(data) for _, _, _, end in elements(data, 0))

    def test_a_batch_that_lies_about_its_sizes(self) -> None:
        good = bson.encode({"a": [{"x": 1}, {"x": 2}]})
        start = find(good, 0, b"a")
        assert start is not None
        for size in (0, 5, 100, -1, 2**31 - 1):
            bad = good[: start[1] + 7] + struct.pack("<i", size) + good[start[1] + 11 :]
            with pytest.raises((MalformedBSON, struct.error)):
                document_offsets(bad, start[1])
