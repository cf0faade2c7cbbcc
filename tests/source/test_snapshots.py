"""A collection read as of cluster times: all types of keys, while it changes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import bson
import pytest
from bson import Decimal128, Int64, MaxKey, MinKey, ObjectId
from bson.datetime_ms import DatetimeMS
from pymongo import MongoClient

from engine.core.specs import SplitSpec
from engine.source import snapshots
from engine.source.session import Client, Members, server_time
from engine.source.snapshots import At, NoSnapshotError, SnapshotScan, find_at

KEYS: list[Any] = [
    *range(150),
    "text",
    1.5,
    Int64(2**60),
    Decimal128("9.5"),
    {"b": 1, "a": 2},
    {"a": 2, "b": 1},
    ObjectId(),
    DatetimeMS(2**60),
    None,
    True,
    MinKey(),
    MaxKey(),
]


@pytest.fixture
def members(client: Client, stack: Any) -> Iterator[Members]:
    made = Members(client, stack.mongo.uri, "primary")
    yield made
    made.close()


@pytest.fixture
def filled(mongo: MongoClient[dict[str, Any]], unique: str) -> Any:
    collection = mongo[unique]["orders"]
    collection.insert_many([{"_id": key, "n": 0} for key in KEYS])
    return collection


def read(members: Members, database: str, collection: str, at: At) -> tuple[list[bytes], list[int]]:
    """All documents, and the time of each reply."""
    scan = SnapshotScan(members, SplitSpec("", database, collection), at)
    found, times = [], []
    while True:
        reply = scan.next()
        found += [reply.document(row) for row in range(len(reply))]
        times.append(scan.time)
        if reply.is_last:
            scan.close()
            return found, times


def test_all_documents_are_as_of_the_time(members: Members, client: Client, filled: Any, unique: str) -> None:
    at = server_time(client)
    filled.update_many({}, {"$set": {"n": 1}})
    filled.delete_one({"_id": 7})
    filled.insert_one({"_id": "later"})
    found, times = read(members, unique, "orders", lambda: at)
    assert sorted(found) == sorted(bson.encode({"_id": key, "n": 0}) for key in KEYS)
    assert set(times) == {at}


def test_ranges_have_times_of_their_own(
    members: Members, client: Client, filled: Any, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A range ends after a while, and the next one begins where it ended."""
    monkeypatch.setattr(snapshots, "RANGE_S", -1.0)

    def at() -> int:
        filled.update_one({"_id": 0}, {"$inc": {"n": 1}})
        return server_time(client)

    found, times = read(members, unique, "orders", at)
    assert len(found) == len(KEYS)
    assert len({bytes(each[:-9]) for each in found}) == len(KEYS)
    assert len(set(times)) > 1
    assert times == sorted(times)


def test_documents_are_looked_up_by_any_key(members: Members, client: Client, filled: Any, unique: str) -> None:
    at = server_time(client)
    filled.update_many({}, {"$set": {"n": 1}})
    wanted = [bson.encode({"_id": key}) for key in [*KEYS, "absent"]]
    for time, number in ((at, 0), (None, 1)):
        found = list(find_at(members, unique, "orders", wanted, time))
        assert sorted(found) == sorted(bson.encode({"_id": key, "n": number}) for key in KEYS)


def test_a_time_that_is_gone_is_told(members: Members, client: Client, filled: Any, unique: str) -> None:
    long_ago = server_time(client) - (10_000 << 32)
    with pytest.raises(NoSnapshotError):
        read(members, unique, "orders", lambda: long_ago)
    with pytest.raises(NoSnapshotError):
        list(find_at(members, unique, "orders", [bson.encode({"_id": 1})], long_ago))


@pytest.mark.parametrize("chosen", [True, False])
def test_a_collection_that_does_not_exist_is_empty(
    chosen: bool, members: Members, client: Client, unique: str
) -> None:
    at = server_time(client) if chosen else None
    assert read(members, unique, "absent", lambda: at)[0] == []
