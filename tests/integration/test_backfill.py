"""Backfills: every document is in exactly one object, whatever its _id and whatever crashes."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import bson
import pytest
from bson import Binary, Code, Decimal128, Int64, MaxKey, MinKey, ObjectId, Timestamp
from bson.binary import UuidRepresentation
from pymongo import MongoClient

from bench.local import LocalStack
from bench.measure import PeakMemory
from engine.failpoints import VARIABLE
from tests.integration.harness import Engine, EngineConfig, Lake, kill_all, run_engine

Client = MongoClient[dict[str, Any]]
VIEW = Path(__file__).parents[2] / "configs" / "duckdb" / "current_state.sql"
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
    sections: dict[str, dict[str, Any]] = {
        "source": {"collections": ["orders"]},
        "backfill": {"split_size": "64KiB"},
        "batch": {"rows": 700, "interval": "500ms"},
    }
    return EngineConfig(stack, tmp_path, unique, sections)


def mixed_documents(count: int) -> list[dict[str, Any]]:
    """Documents with ids of many types, MinKey, MaxKey and null among them."""
    singular: list[Any] = [None, MinKey(), MaxKey(), float("nan"), float("-inf"), Decimal128("Infinity"), ""]
    ids = [IDS[n % len(IDS)](n // len(IDS)) for n in range(count)] + singular
    return [{"_id": id_, "n": n, "text": f"document {n}"} for n, id_ in enumerate(ids)]


def backfill(config: EngineConfig, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
    """Run a backfill to its end; the reports on stdout."""
    done = run_engine(config, "backfill", *arguments)
    assert done.returncode == code, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def numbers(lake: Lake) -> Counter[int]:
    """How often each number is in the lake."""
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


def test_an_empty_collection(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    mongo[config.name].create_collection("orders")
    (report,) = backfill(config)
    assert report["splits"] == report["splits_total"] == 1
    assert report["finished"]
    assert lake.object_keys() == []


def test_a_finished_backfill_is_not_repeated_unless_restarted(
    mongo: Client, config: EngineConfig, lake: Lake
) -> None:
    mongo[config.name].orders.insert_many([{"_id": n, "n": n} for n in range(3000)])
    first = backfill(config)
    keys = lake.object_keys()
    assert backfill(config) == first
    assert lake.object_keys() == keys
    (again,) = backfill(config, "--restart")
    assert again["finished"] > first[0]["finished"]
    twice = Counter(dict.fromkeys(range(3000), 2))
    assert numbers(lake) == twice + Counter([None]), "new keys beside the old ones, which the mark voids"
    assert [row["_cdc_op"] for row in lake.rows() if row["n"] is None] == ["loaded"]
    for key in keys:
        lake.remove(key)
    assert numbers(lake) == Counter([*range(3000), None])


@pytest.mark.parametrize(
    "options",
    [
        {"clusteredIndex": {"key": {"_id": 1}, "unique": True}},
        {"capped": True, "size": 10_000_000},
        {"collation": {"locale": "en", "strength": 2, "numericOrdering": True}},
    ],
    ids=["clustered", "capped", "collation"],
)
def test_collections_with_options(mongo: Client, config: EngineConfig, lake: Lake, options: Any) -> None:
    collection = mongo[config.name].create_collection("orders", **options)
    names = [f"{'Order' if n % 2 else 'order'} {n}" for n in range(4000)]
    collection.insert_many([{"_id": name, "n": n, "text": "x" * 100} for n, name in enumerate(names)])
    (report,) = backfill(config)
    assert report["splits"] > 3
    assert numbers(lake) == Counter(range(4000))


def test_a_time_series(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    """Measurements have no key, and many have the same time."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    collection = mongo[config.name].create_collection("orders", timeseries={"timeField": "at", "metaField": "m"})
    documents = [
        {"at": start + timedelta(seconds=n // 3), "m": n % 5, "n": n, "text": f"{n * 7919}" * 20}
        for n in range(6000)
    ]
    collection.insert_many(documents)
    (report,) = backfill(config)
    assert report["splits"] > 3
    assert numbers(lake) == Counter(range(6000))
    backfill(config, "--restart", "--since", "2026-01-01T00:10:00Z", "--until", "2026-01-01T00:20:00Z")
    assert sum(count - 1 for count in numbers(lake).values()) == 1800


def test_a_filter_and_times(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    ids = [ObjectId(f"{1_700_000_000 + n:08x}{n:016x}") for n in range(3000)]
    mongo[config.name].orders.insert_many([{"_id": id_, "n": n, "even": n % 2 == 0} for n, id_ in enumerate(ids)])
    since = datetime.fromtimestamp(1_700_000_000 + 1000, UTC).isoformat()
    until = datetime.fromtimestamp(1_700_000_000 + 2000, UTC).isoformat()
    (report,) = backfill(config, "--filter", '{"even": true}', "--since", since, "--until", until)
    assert numbers(lake) == Counter(range(1000, 2000, 2))
    assert report["documents"] == 500
    assert report["documents_total"] == 1000


def test_other_formats(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    documents = [{"_id": n, "n": n, "at": datetime(2026, 1, 1)} for n in range(1500)]
    mongo[config.name].orders.insert_many(documents)
    config.set("sink", format="bson", compression="none")
    backfill(config)
    found = [document for key in lake.object_keys() for document in bson.decode_all(lake.content(key))]
    assert sorted(found, key=lambda document: document["n"]) == documents


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--collections", "order"], "Did you mean 'orders'?"),
        (["--filter", "{status"], "is not valid JSON"),
        (["--filter", '["a"]'], "is not a JSON object"),
        (["--filter", '{"n": {"$gt": 1, "$gt": 2}}'], "'$gt' is given twice"),
        (["--filter", '{"$frobnicate": 1}'], "unknown top level operator: $frobnicate"),
        (["--since", "2026-01-01T00:00:00Z"], "there is an _id of type int"),
        (["--since", "yesterday"], "is not an RFC 3339 time"),
        (["--collections", "view"], "it is a view"),
    ],
)
def test_errors(mongo: Client, config: EngineConfig, lake: Lake, arguments: list[str], words: str) -> None:
    mongo[config.name].orders.insert_many([{"_id": n, "n": n} for n in range(10)])
    mongo[config.name].create_collection("view", viewOn="orders", pipeline=[])
    done = run_engine(config, "backfill", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert lake.object_keys() == []


def test_another_selection_of_an_unfinished_backfill(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    mongo[config.name].orders.insert_many([{"_id": n, "n": n, "text": "x" * 500} for n in range(5000)])
    config.set("backfill", max_documents_per_s=500, readers=1)
    with Engine(config, command="backfill") as engine:
        engine.wait_for(lambda status: status["backfills"][0]["documents"] > 0, "a document in the lake")
        held = run_engine(config, "backfill", "--restart")
        assert held.returncode == 2
        assert "is working on it" in held.stderr
        assert engine.terminate() == 0
    done = run_engine(config, "backfill", "--filter", '{"n": 1}')
    assert done.returncode == 2
    assert "is unfinished, of all documents" in done.stderr
    (status,) = [json.loads(line) for line in run_engine(config, "status").stdout.splitlines()]
    assert 0 < status["documents"] < 5000
    config.set("backfill", max_documents_per_s=0)
    (report,) = backfill(config)
    assert report["documents"] == 5000
    assert numbers(lake) == Counter(range(5000))


def test_two_engines_share_a_plan(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    """An engine that comes late to a split finds it done, even if the backfill has finished meanwhile."""
    documents = mixed_documents(8000)
    mongo[config.name].orders.insert_many(documents)
    config.set("backfill", max_documents_per_s=2000, readers=1)
    config.set("telemetry", listen="")
    with Engine(config, command="backfill") as one, Engine(config, command="backfill") as other:
        assert one.end() == 0, one.log_tail()
        assert other.end() == 0, other.log_tail()
    assert numbers(lake) == Counter(range(len(documents)))


def test_a_collection_named_twice(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    mongo[config.name].orders.insert_many([{"_id": n, "n": n, "text": "x" * 50} for n in range(3000)])
    (report,) = backfill(config, "--collections", "orders,orders")
    assert report["documents"] == 3000
    assert numbers(lake) == Counter(range(3000))


def test_large_documents_within_the_limit(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    """Documents of 16 MB, and of 100 KB with many fields, by two readers."""
    config.set("memory", limit="768MiB")
    config.set("batch", rows=100_000, interval="30s", bytes="128MiB")
    collection = mongo[config.name].orders
    for n in range(12):
        collection.insert_one({"_id": n, "n": n, "blob": bytes([n]) * (16 * 2**20 - 200)})
    for start in range(12, 412, 100):
        collection.insert_many(
            [{"_id": n, "n": n, "numbers": [n + m / 7 for m in range(9000)]} for n in range(start, start + 100)]
        )
    with Engine(config, command="backfill") as engine, PeakMemory(engine.process.pid, 0.05) as memory:
        assert engine.end(300) == 0, engine.log_tail()
    assert numbers(lake) == Counter(range(412))
    assert 100 * 2**20 < memory.peak <= 768 * 2**20


def test_killed_at_random(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    """Any process is killed, 20 times: every document lands once, and few are read twice."""
    rng = random.Random(5)
    count = 40_000
    documents = mixed_documents(count)
    mongo[config.name].orders.insert_many(documents)
    returned = documents_returned(mongo)
    # At this rate, reading everything takes about twice as long as the kills.
    config.set("backfill", max_documents_per_s=800, split_size="256KiB")
    kills: Counter[str] = Counter()
    engine: Engine | None = None
    while kills.total() < 20:
        if engine is None:
            engine = Engine(config, command="backfill")
        time.sleep(0.5 + rng.random() * 1.5)
        victim = rng.choice(["tree", "supervisor", "reader", "writer"])
        if engine.process.poll() is not None:
            assert engine.process.returncode == 0, engine.log_tail()
            break
        if victim == "tree":
            engine.kill_tree()
            engine = None
        elif victim == "supervisor":
            engine.kill_supervisor()
            engine = None
        elif pids := engine.pids(victim):
            kill_all([rng.choice(pids)])
        else:
            continue
        kills[victim] += 1
        seen = numbers(lake)
        assert set(seen.values()) <= {1}
    if engine is not None:
        engine.kill_tree()
    assert kills.total() == 20, "the backfill finished before the last kill"
    config.set("backfill", max_documents_per_s=0)
    (report,) = backfill(config)
    assert report["documents"] == len(documents)
    assert numbers(lake) == Counter(range(len(documents)))
    twice = documents_returned(mongo) - returned - len(documents)
    per_split = len(documents) / report["splits"]
    assert twice < kills.total() * 2 * per_split + 3000, "less than one split per reader for each kill"


def documents_returned(mongo: Client) -> int:
    """How many documents the server has returned so far."""
    return int(mongo.admin.command("serverStatus")["metrics"]["document"]["returned"])


class Writer:
    """Inserts, updates, replaces and deletes documents of a collection, in a thread."""

    def __init__(self, mongo: Client, database: str, present: int) -> None:
        self._collection = mongo[database].orders
        self._rng = random.Random(7)
        self._present = present
        self._stopped = threading.Event()
        self.kinds: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        rng, next_id = self._rng, self._present
        while not self._stopped.wait(0.002):
            kind = rng.choice(["insert", "update", "replace", "delete"])
            some = {"_id": rng.randrange(next_id)}
            match kind:
                case "insert":
                    self._collection.insert_one({"_id": next_id, "n": next_id, "text": "new"})
                    next_id += 1
                case "update":
                    self._collection.update_one(some, {"$set": {"number": rng.random(), "text": "changed"}})
                case "replace":
                    self._collection.replace_one(some, {"n": rng.randrange(100), "tags": ["a", "b"]})
                case "delete":
                    self._collection.delete_one(some)
            self.kinds[kind] += 1

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()


def current_state(lake: Lake) -> dict[Any, dict[str, Any]]:
    """The collection as the view reconstructs it from the lake."""
    files = "'{{url}}/*database=*/*collection=orders/**/*.parquet'"
    view = f"{VIEW.read_text()} CREATE VIEW orders AS FROM current_state({files});"
    table = lake.query(view, "select * from orders")
    rows = [
        {name: value for name, value in row.items() if value is not None and not name.startswith("_cdc_")}
        for row in table.to_pylist()
    ]
    assert len({row["_id"] for row in rows}) == len(rows)
    return {row["_id"]: row for row in rows}


def is_loaded(status: dict[str, Any]) -> bool:
    """Whether all backfills are in the lake."""
    found = status["backfills"]
    return bool(found) and all(each["splits"] == each["splits_total"] for each in found)


def test_a_second_backfill_is_marked_once_despite_crashes(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    """It is killed before each commit, that of the mark included. Documents deleted between the two are gone."""
    collection = mongo[config.name].orders
    collection.insert_many([{"_id": n, "n": n} for n in range(300)])
    backfill(config)
    collection.delete_many({"_id": {"$lt": 100}})
    arguments = ["--restart"]
    for commit in (1, 2, 3):
        dying = {VARIABLE: f"before_commit:{commit}"}
        with Engine(config, *arguments, command="backfill", environment=dying) as engine:
            engine.end()
        arguments = []
        assert len(current_state(lake)) in (200, 300)
    backfill(config)
    assert [row["_cdc_op"] for row in lake.rows()].count("loaded") == 1
    assert numbers(lake) == Counter([*range(300), *range(100, 300), None])
    assert set(current_state(lake)) == set(range(100, 300))


def test_a_snapshot_hands_over_to_the_stream(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    """With concurrent writes, and everything killed halfway."""
    present = 20_000
    collection = mongo[config.name].orders
    collection.insert_many([{"_id": n, "n": n, "text": "x" * 80} for n in range(present)])
    config.set("source", start="snapshot", collections=["orders", "later"])
    config.set("backfill", max_documents_per_s=4000)
    with Writer(mongo, config.name, present) as writer:
        with Engine(config) as engine:
            engine.wait_for(lambda status: status["backfills"][0]["documents"] > present // 4, "some documents")
            engine.kill_tree()
        mongo[config.name].later.insert_one({"_id": 1})
        assert len(current_state(lake)) < present, "killed halfway"
        with Engine(config) as engine:
            engine.wait_for(is_loaded, "the load")
            time.sleep(1)
            assert engine.terminate() == 0
    assert set(writer.kinds) == {"insert", "update", "replace", "delete"}
    with Engine(config, "--until-caught-up") as engine:
        assert engine.end() == 0
        assert '"backfill' not in engine.log_path.read_text().rpartition("listening")[2], (
            "it must not be loaded twice"
        )
    expected = {document["_id"]: document for document in collection.find()}
    assert current_state(lake) == expected
    later = [row["_cdc_op"] for row in lake.rows() if row["_cdc_collection"] == "later"]
    assert later == ["insert"], "the stream delivers it, so it is not loaded"
    (status,) = [
        line for line in map(json.loads, run_engine(config, "status").stdout.splitlines()) if "splits" in line
    ]
    assert status["splits"] == status["splits_total"] > 1


def test_a_snapshot_after_an_old_backfill(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    """Changes between the two are in no stream, so everything is loaded again."""
    collection = mongo[config.name].orders
    collection.insert_many([{"_id": n, "n": n, "text": "x" * 80} for n in range(2000)])
    backfill(config)
    collection.update_many({"_id": {"$lt": 500}}, {"$set": {"text": "changed between"}})
    time.sleep(1.1)
    config.set("source", start="snapshot")
    with Engine(config) as engine:
        engine.wait_for(is_loaded, "the load")
        engine.wait_reading()
        collection.update_one({"_id": 7}, {"$set": {"text": "changed after"}})
        engine.wait_for(lambda status: status["streams"][0]["events_committed"] > 0, "the event")
        assert engine.terminate() == 0
    assert current_state(lake) == {document["_id"]: document for document in collection.find()}


def test_backfill_beside_a_running_stream(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    present = 5000
    collection = mongo[config.name].orders
    collection.insert_many([{"_id": n, "n": n, "text": "x" * 80} for n in range(present)])
    config.set("source", start="now")
    with Engine(config) as engine:
        engine.wait_reading()
        with Writer(mongo, config.name, present):
            config.set("telemetry", listen="")
            backfill(config)
            config.set("telemetry", listen=f"127.0.0.1:{config.port}")
        assert engine.terminate() == 0
    with Engine(config, "--until-caught-up") as engine:
        assert engine.end() == 0
    assert current_state(lake) == {document["_id"]: document for document in collection.find()}


@pytest.mark.parametrize("watch", ["collections", "deployment"])
def test_what_is_named_and_cannot_be_loaded_is_said(
    mongo: Client, config: EngineConfig, lake: Lake, watch: str
) -> None:
    mongo[config.name].orders.insert_many([{"_id": n} for n in range(3)])
    mongo[config.name].create_collection("recent", viewOn="orders", pipeline=[])
    names = ["orders", "recent", "ordres"]
    if watch == "collections":
        config.set("source", collections=names)
    else:
        config.set("source", watch=watch, database="", collections=[f"{config.name}.{name}" for name in names])
    log = run_engine(config, "backfill").stderr
    said = [line for line in map(json.loads, log.splitlines()) if line["level"] == "warning"]
    assert {line["message"] for line in said} == {"something that the configuration names is in doubt"}
    assert sorted(line["cause"] for line in said) == [
        f"'recent' in {config.name} is a view, which has no index to read by",
        f"there is no collection 'ordres' in {config.name}: did you mean 'orders'?",
    ]
    assert {row["_id"] for row in lake.rows()} == {0, 1, 2}
