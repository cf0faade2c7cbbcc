"""Splits on a real server: resumed after every error, and replayed with the same cuts."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import bson
import pytest
from bson import Int64, MaxKey, MinKey
from pymongo import MongoClient
from pymongo.errors import OperationFailure

from bench.local import Mongo
from engine.core.backfill import END, make_place
from engine.core.messages import Intent
from engine.core.position import Position
from engine.core.segments import Limits, Segmenter
from engine.core.specs import MarkSpec, SplitSpec
from engine.errors import ConfigError, InterruptedScanError, TransientError
from engine.source.pace import Pace, replication_lag_s
from engine.source.scan import Documents, Mark, SplitScan
from engine.source.session import Members, connect, server_time
from tests.failing import failing

Client = MongoClient[dict[str, Any]]


@pytest.fixture
def spec(unique: str) -> SplitSpec:
    return SplitSpec("s", unique, "c")


def key(value: Any) -> str:
    return bson.encode({"_id": value}).hex()


def scan(
    client: Client, spec: SplitSpec, start: Position | None = None, replay: list[str] | None = None
) -> SplitScan:
    start = start or Position(time=server_time(client))
    return SplitScan(Members(client, "", "primary"), spec, start, replay or [], reply_size=2000)


def ids_of(reply: Documents) -> list[Any]:
    return [bson.decode(reply.document(row))["_id"] for row in range(len(reply))]


def read(split: SplitScan) -> list[Any]:
    """Read a split to its end; all ids."""
    found: list[Any] = []
    while True:
        reply = split.next()
        found += ids_of(reply)
        if reply.is_last:
            assert reply.token == END
            return found


def segments(client: Client, spec: SplitSpec, start: Position, intents: list[Intent]) -> dict[int, list[Any]]:
    """The ids in each segment, as cut by a reader that replays these intents."""
    split = scan(client, spec, start, [intent.end.token for intent in intents])
    first = intents[0].seq if intents else 1
    segmenter = Segmenter(Limits(150, 10**9, 1e9), first, intents, 0, start)
    found: dict[int, list[Any]] = {}
    while True:
        reply = split.next()
        row = 0
        while row < len(reply):
            stop = segmenter.reach(reply, row, 70)
            found.setdefault(segmenter.seq, []).extend(ids_of(reply)[row:stop])
            segmenter.take(reply, row, stop, 0.0)
            row = stop
        if reply.position is not None:
            segmenter.scanned(reply.token)
        if reply.is_last:
            assert not segmenter.replaying
            return found


def test_bounds_and_the_highest_key(client: Client, spec: SplitSpec) -> None:
    ids = [MinKey(), None, *range(500), "a", "b", MaxKey()]
    client[spec.database].c.insert_many([{"_id": id_} for id_ in ids])
    assert read(scan(client, spec)) == ids
    lower = SplitSpec("s", spec.database, "c", lower=key(250))
    upper = SplitSpec("s", spec.database, "c", upper=key(250))
    assert read(scan(client, upper)) + read(scan(client, lower)) == ids
    empty = SplitSpec("s", spec.database, "c", lower=key(250), upper=key(Int64(250)))
    assert read(scan(client, empty)) == []
    behind_all = Position(make_place(5, key(MaxKey())), server_time(client))
    assert read(scan(client, spec, behind_all)) == []


@pytest.mark.parametrize("command", ["find", "getMore"])
@pytest.mark.parametrize(
    "error",
    [
        {"closeConnection": True},
        *(
            {"errorCode": code}
            for code in (43, 175, 237, 11601, 1, 8, 24, 50, 72, 96, 112, 136, 202, 211, 246, 365)
        ),
    ],
    ids=str,
)
def test_resumes_after_the_last_reply(client: Client, spec: SplitSpec, command: str, error: Any) -> None:
    client[spec.database].c.insert_many([{"_id": n, "text": "x" * 30} for n in range(1000)])
    split = scan(client, spec)
    found = ids_of(split.next()) if command == "getMore" else []
    failures = 0
    with failing(client, command, 2, appName="headrace", **error):
        while True:
            try:
                reply = split.next()
            except TransientError:
                failures += 1
                continue
            found += ids_of(reply)
            if reply.is_last:
                break
    assert failures > 0
    assert found == list(range(1000))


def test_a_replay_ends_where_the_segment_ended(client: Client, spec: SplitSpec) -> None:
    """Every document that remains is in the same segment, whatever was inserted or deleted."""
    collection = client[spec.database].c
    collection.insert_many([{"_id": n} for n in range(0, 1000, 2)])
    start = Position(time=server_time(client))
    before = segments(client, spec, start, [])
    assert [len(found) for found in before.values()] == [150, 150, 150, 50]
    intents = [
        Intent(seq, "", Position(make_place(seq * 150, key(before[seq][-1])), start.time), (), 150)
        for seq in (1, 2)
    ]
    ends = [before[1][-1], before[2][-1]]
    collection.delete_many({"_id": {"$in": [0, 100, ends[0]]}})
    collection.insert_many([{"_id": n} for n in (1, 3, ends[0] - 1, ends[0] + 1, ends[1] + 1, 999)])
    collection.delete_one({"_id": ends[1]})
    collection.insert_one({"_id": float(ends[1])})  # equal, but another document
    after = segments(client, spec, start, intents)
    stayed = set(range(0, 1000, 2)) - {0, 100, *ends}
    for seq in (1, 2):
        assert set(after[seq]) & stayed == set(before[seq]) & stayed
    everything = [id_ for found in after.values() for id_ in found]
    assert len(everything) == len(set(everything))
    assert set(everything) == {each["_id"] for each in collection.find()}
    assert float(ends[1]) in after[3]


def test_a_filter(client: Client, spec: SplitSpec) -> None:
    client[spec.database].c.insert_many([{"_id": n, "even": n % 2 == 0} for n in range(500)])
    even = SplitSpec("s", spec.database, "c", lower=key(100), filter='{"even": true}')
    assert read(scan(client, even)) == list(range(100, 500, 2))
    wrong = SplitSpec("s", spec.database, "c", filter='{"$nonsense": 1}')
    with pytest.raises(ConfigError, match=r"Check --filter\."):
        scan(client, wrong).next()


def test_a_split_that_is_read_as_a_whole_is_not_resumed(client: Client, spec: SplitSpec) -> None:
    client[spec.database].c.insert_many([{"_id": n, "t": n // 10} for n in range(1000)])
    whole = SplitSpec("s", spec.database, "c", order="t", whole=True)
    assert read(scan(client, whole)) == list(range(1000))
    split = scan(client, whole)
    split.next()
    with failing(client, "getMore", 1, appName="headrace", errorCode=43), pytest.raises(TransientError):
        split.next()
    with pytest.raises(InterruptedScanError):
        split.next()


def test_pace(client: Client) -> None:
    pace = Pace(documents_per_s=1000, bytes_per_s=1e9)
    assert pace.max_documents(5000) == 1000
    assert pace.may_read(client)
    pace.spend(10_000, 100)
    assert not pace.may_read(client), "ten seconds' worth was read"
    fast = Pace(documents_per_s=1e6)
    fast.spend(100_000, 100)
    assert fast.may_read(client), "less than a second's worth was read"
    assert replication_lag_s(client) == 0.0


def test_a_transient_error_is_not_taken_for_missing_rights(client: Client) -> None:
    for code, kind in ((11601, OperationFailure), (13, ConfigError)):
        with failing(client, "replSetGetStatus", 1, appName="headrace", errorCode=code), pytest.raises(kind):
            replication_lag_s(client)


def test_secondaries(tmp_path: Path, spec: SplitSpec) -> None:
    """One secondary is read, which has all earlier writes; after its death, another one. A stopped one lags."""
    mongo = Mongo(tmp_path, members=3, cache_gib=0.25)
    mongo.start()
    try:
        uri = f"{mongo.uri}&serverSelectionTimeoutMS=1000"  # how long to wait for a killed member
        with connect(uri) as client:
            client[spec.database].c.insert_many([{"_id": n, "text": "x" * 30} for n in range(2000)])
            members = Members(client, uri, "secondary")
            start = Position(time=server_time(client))
            split = SplitScan(members, spec, start, [], reply_size=2000)
            found = ids_of(split.next())
            ((host, port),) = members.addresses
            ((_, other),) = client.secondaries - {(host, port or 0)}
            with Client("127.0.0.1", other, directConnection=True) as behind:
                behind.admin.command("fsync", lock=True)  # it no longer applies writes
                deadline = time.monotonic() + 60
                while replication_lag_s(client) < 2:
                    assert time.monotonic() < deadline
                    client[spec.database].d.insert_one({})
                    time.sleep(0.1)
                assert not Pace(max_lag_s=1).may_read(client)
                behind.admin.command("fsyncUnlock")
            mongo.members[mongo.ports.index(port or 0)].kill()
            while True:
                try:
                    reply = split.next()
                except TransientError:
                    continue
                found += ids_of(reply)
                if reply.is_last:
                    break
            assert found == list(range(2000))
            assert len(members.addresses) == 2, "the other secondary must be chosen"
            assert Members(client, uri, "primary").choose() is client
            split.close()
            members.close()
    finally:
        for member in mongo.members:
            member.kill()


def test_a_mark_is_given_once() -> None:
    """Its segment may have been committed, and the engine have died before the end was."""
    spec, time = MarkSpec("s", "shop", "orders", 5 << 32), 7 << 32
    first = Mark(spec, Position(time=time)).next()
    assert (len(first), first.is_last, first.position) == (1, True, Position(END, time))
    event = bson.decode(first.document(0))
    assert (event["operationType"], event["ns"]) == ("loaded", {"db": "shop", "coll": "orders"})
    again = Mark(spec, Position(first.token_at(0), time)).next()
    assert (len(again), again.is_last, again.position) == (0, True, Position(END, time))
