"""Whole collections to the lake: every document in exactly one object, whatever its _id and whatever crashes."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import bson
import pytest
from bson import Binary, Code, Decimal128, Int64, MaxKey, MinKey, ObjectId, Timestamp
from bson.binary import UuidRepresentation
from pymongo import MongoClient

from engine.local import LocalStack
from tests.integration.harness import EngineConfig, Lake, run_engine

Client = MongoClient[dict[str, Any]]
IDS = [
    lambda n: ObjectId(f"{n:024x}"),
    lambda n: f"id-{n}",
    lambda n: 2 * n,
    lambda n: Int64(2**40 + n),
    lambda n: n + 0.5,
    lambda n: datetime(2020, 1, 1, tzinfo=UTC) + timedelta(seconds=n),
    lambda n: Binary.from_uuid(UUID(int=n), UuidRepresentation.STANDARD),
    lambda n: Binary(n.to_bytes(4, "big"), 128),
    lambda n: {"shop": n % 7, "n": n},
    lambda n: Decimal128(f"-{n}.25"),
    lambda n: Timestamp(n + 1, 1),
    lambda n: bool(n) if n < 2 else Code(f"f{n}()"),
]


@pytest.fixture
def config(stack: LocalStack, tmp_path: Any, unique: str) -> EngineConfig:
    sections = {
        "source": {"collections": ["orders"]},
        "backfill": {"split_size": "64KiB"},
        "batch": {"rows": 700, "interval": "500ms"},
    }
    return EngineConfig(stack, tmp_path, unique, sections)


def mixed_documents(count: int) -> list[dict[str, Any]]:
    """Documents with ids of many types, and the singular ones."""
    singular: list[Any] = [None, MinKey(), MaxKey(), float("nan"), float("-inf"), Decimal128("Infinity"), ""]
    ids = [IDS[n % len(IDS)](n // len(IDS)) for n in range(count)] + singular
    return [{"_id": id_, "n": n, "text": f"document {n}"} for n, id_ in enumerate(ids)]


def backfill(config: EngineConfig, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
    """Run it to its end; what it says on stdout."""
    done = run_engine(config, "backfill", *arguments)
    assert done.returncode == code, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def numbers(lake: Lake) -> Counter[int]:
    """How often each document's number is in the lake."""
    return Counter(row["n"] for row in lake.rows())


def test_ids_of_every_type(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    documents = mixed_documents(6000)
    mongo[config.name].orders.insert_many(documents)
    (report,) = backfill(config)
    assert report["splits"] == report["splits_total"] > 3
    assert report["documents"] == len(documents)
    assert numbers(lake) == Counter(range(len(documents)))
    rows = lake.rows()
    assert {row["_cdc_op"] for row in rows} == {"read"}
    assert {row["_cdc_token"] for row in rows} == {None}
    keys = {row["n"]: row["_cdc_key"] for row in rows}
    for document in documents:
        expected = bson.json_util.dumps({"_id": document["_id"]}, json_options=bson.json_util.RELAXED_JSON_OPTIONS)
        assert json.loads(keys[document["n"]]) == json.loads(expected)
