"""The state is gone, and made again from the lake: the next run leaves each event in it once."""

from __future__ import annotations

import contextlib
import itertools
import random
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from bson.decimal128 import Decimal128
from bson.int64 import Int64
from bson.timestamp import Timestamp
from pymongo import MongoClient

from bench.local import LocalStack
from engine.failpoints import VARIABLE
from tests.exploring import EXPLORE, explored
from tests.integration.harness import Engine, EngineConfig, Lake, PlainStream, catch_up, operation_time, run_engine

Client = MongoClient[dict[str, Any]]
STORES = ["sqlite", "redis", "lake"]


def with_stores(*names: str) -> pytest.MarkDecorator:
    """Run a test with the state in these stores; with EXPLORE=1 in each."""
    return pytest.mark.parametrize("config", STORES if EXPLORE else names, indirect=True)


HOSTILE = ["a/b c", "100%", "x=y", "Ü~1", "n" * 150, "orders.old"]
COLLECTIONS = ["orders", "items", *HOSTILE, *(f"more{number}" for number in range(4))]
KEYS: list[Callable[[int], Any]] = [
    lambda n: n,
    lambda n: Int64(2**60 + n),
    lambda n: n + 0.5,
    lambda n: Decimal128(f"{n}.25"),
    lambda n: {"a": Int64(2**59 + n), "b": "x"},
    lambda n: f"text {n}",
]


@pytest.fixture
def config(request: pytest.FixtureRequest, stack: LocalStack, tmp_path: Path, unique: str) -> EngineConfig:
    made = EngineConfig(stack, tmp_path, unique, {"source": {"collections": COLLECTIONS}})
    if request.param != "redis":
        made.set("state", url="lake" if request.param == "lake" else f"sqlite:///{tmp_path}/state.db")
    return made


def objects_of(config: EngineConfig) -> dict[str, bytes]:
    """Those of a state in the lake."""
    files = config.stack.s3.filesystem()
    prefix = f"{config.stack.bucket}/{config.name}/_headrace/"
    found = {}
    for path in files.find(prefix):
        # What an engine removes meanwhile is none; a listing without objects names the prefix itself.
        with contextlib.suppress(FileNotFoundError):
            found[path] = files.cat_file(path)
    return found


def lose_state(config: EngineConfig) -> None:
    """Remove all of it."""
    for each in config.directory.glob("state.db*"):
        each.unlink()
    with redis.Redis(port=config.stack.valkey.port) as client:
        for key in client.scan_iter(f"{config.name}:*"):
            client.delete(key)
    for path in objects_of(config):
        config.stack.s3.filesystem().rm_file(path)


def write(mongo: Client, config: EngineConfig, start: int, rng: random.Random) -> None:
    """Insert, update and delete in all collections, with every kind of ``_id`` and with new fields."""
    database = mongo[config.name]
    for number, name in enumerate(COLLECTIONS):
        ids = [KEYS[(n + number) % len(KEYS)](start + n) for n in range(20)]
        fields = {f"f{start % 7}": [bson.ObjectId()], "n": Int64(start), "text": "x" * rng.randrange(50)}
        database[name].insert_many([{"_id": id_, **fields} for id_ in ids])
        database[name].update_one({"_id": ids[3]}, {"$set": {"late": start}})
        database[name].delete_one({"_id": ids[5]})


def rebuild(config: EngineConfig) -> str:
    """Rebuild the state; what it has printed."""
    done = run_engine(config, "state", "rebuild", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check_types(lake: Lake) -> None:
    """No two files of a collection disagree about the type of a column."""
    types: dict[tuple[str, str], dict[str, pa.DataType]] = defaultdict(dict)
    for key in lake.object_keys():
        directory = key.partition("/cdc_date")[0]
        for field in pq.ParquetFile(pa.BufferReader(lake.content(key))).schema_arrow:
            known = types[directory, field.name]
            known[key] = field.type
            assert len(set(known.values())) == 1, f"{field.name}: {known}"


@with_stores("sqlite")
def test_a_segment_published_in_part_is_completed(mongo: Client, stack: LocalStack, config: EngineConfig) -> None:
    """With one stream of everything, or with two that share the collections."""
    rng = random.Random(1)
    watch = "collections" if config.sections["state"]["url"].startswith("redis") else "database"
    config.set("source", watch=watch, max_readers=2)
    if watch == "database":
        config.set("source", collections=[])
    lake, plain = Lake(stack, config.name), PlainStream(mongo, config.name, operation_time(mongo))
    write(mongo, config, 0, rng)
    catch_up(config)
    before = lake.object_keys()
    write(mongo, config, 100, rng)
    with Engine(config, environment={VARIABLE: "between_objects:1"}) as engine:
        while "writer" not in engine.log() or len(lake.object_keys()) <= len(before):
            assert engine.process.poll() is None, engine.log_tail()
            time.sleep(0.05)
        engine.wait_for(lambda status: any(each["restarts"] for each in status["streams"]), "a dead writer")
        engine.kill_tree()
    lose_state(config)
    refused = run_engine(config, "run", "--until-caught-up")
    assert refused.returncode == 1, refused.stderr
    assert "headrace state rebuild" in refused.stderr
    shown = run_engine(config, "state", "rebuild")
    assert "Nothing has been written" in shown.stdout, shown.stderr
    assert '"position":"{' not in run_engine(config, "state", "show", "--json").stdout
    said = rebuild(config)
    assert watch == "collections" or "will be completed by the next run; in the lake: " in said
    assert said.count("fields") == len(COLLECTIONS)
    write(mongo, config, 200, rng)
    catch_up(config)
    assert lake.check_no_token_twice() == plain.stop()
    check_types(lake)
    assert "lacks nothing" in run_engine(config, "state", "rebuild").stdout


def copied(config: EngineConfig) -> Callable[[], None]:
    """Copy the state; returns what puts the copy back in place of whatever is there."""
    files = {path: path.read_bytes() for path in config.directory.glob("state.db*")}
    with redis.Redis(port=config.stack.valkey.port) as client:
        keys = {key: client.dump(key) for key in client.scan_iter(f"{config.name}:*")}
    objects = objects_of(config)

    def restore() -> None:
        lose_state(config)
        for path, content in files.items():
            path.write_bytes(content)
        with redis.Redis(port=config.stack.valkey.port) as client:
            for key, value in keys.items():
                client.restore(key, 0, value)
        for key, body in objects.items():
            config.stack.s3.filesystem().pipe_file(key, body)

    return restore


@with_stores("redis", "lake")
def test_a_state_lost_while_running_or_replaced_by_an_older_one(
    mongo: Client, stack: LocalStack, config: EngineConfig
) -> None:
    """With a split collection and a finished backfill, then a half finished one."""
    rng = random.Random(2)
    config.set("source", collections=["orders", "items"], split={"orders": 2}, start="snapshot")
    config.set("backfill", split_size="64KiB", readers=1)
    database = mongo[config.name]
    database.orders.insert_many([{"n": n, "text": "x" * 500} for n in range(400)])
    lake = Lake(stack, config.name)
    loaded_at = operation_time(mongo)
    plain = PlainStream(mongo, config.name, Timestamp(loaded_at.time, loaded_at.inc + 1))
    catch_up(config)
    restore = copied(config)
    for name in ("orders", "items"):
        database[name].insert_many([{"n": n, "list": [bson.ObjectId()]} for n in range(300)])
    with Engine(config) as engine:
        engine.wait_for(
            lambda status: sum(each["events_committed"] for each in status["streams"]) == 600, "events"
        )
        lose_state(config)
        database.orders.insert_many([{"n": n} for n in range(rng.randrange(100, 200))])
        assert engine.end() == 1
        assert "headrace state rebuild" in engine.log_tail()
    restore()
    assert run_engine(config, "run", "--until-caught-up").returncode == 1
    said = rebuild(config)
    assert said.count("its record is replaced: it knows of no segment after") == 3, said
    database["items"].insert_many([{"n": n, "list": [bson.ObjectId()]} for n in range(50)])
    catch_up(config)
    check_streamed(lake, plain.stop(), loaded=400)


@with_stores("sqlite")
def test_backfills_are_not_loaded_again_in_silence(mongo: Client, stack: LocalStack, config: EngineConfig) -> None:
    """One that has ended with a mark is known to be finished; one that has not is not."""
    config.set("source", collections=["orders", "items"])
    config.set("backfill", split_size="64KiB", readers=1)
    database, lake = mongo[config.name], Lake(stack, config.name)
    for name in ("orders", "items"):
        database[name].insert_many([{"_id": n, "text": "x" * 500} for n in range(300)])
    catch_up(config)
    assert run_engine(config, "backfill", "--collections", "orders").returncode == 0
    config.set("backfill", max_documents_per_s=100)
    with Engine(config, "--collections", "items", command="backfill") as engine:
        engine.wait_for(lambda status: bool(status["backfills"][0]["splits"]), "a split")
        engine.kill_tree()
    lose_state(config)
    config.set("backfill", max_documents_per_s=0)
    said = rebuild(config)
    assert f"{config.name}.orders: its backfill" in said
    assert f"{config.name}.items: " in said
    assert "headrace backfill --restart" in said
    keys = lake.object_keys()
    assert run_engine(config, "backfill", "--collections", "orders").returncode == 0
    refused = run_engine(config, "backfill", "--collections", "items")
    assert refused.returncode == 2
    assert "documents would be loaded twice" in refused.stderr
    assert lake.object_keys() == keys
    assert run_engine(config, "backfill", "--restart", "--collections", "items").returncode == 0
    rows = [row for row in lake.rows() if row["_cdc_collection"] == "items"]
    (mark,) = [row["_cdc_timestamp"] for row in rows if row["_cdc_op"] == "loaded"]
    after = [row["_id"] for row in rows if row["_cdc_op"] == "read" and row["_cdc_timestamp"] >= mark]
    # Rows of the first attempt may have the very time of the mark: nothing was written in between.
    assert set(after) == set(range(300))


@with_stores("lake")
def test_each_object_of_the_state_is_lost_or_damaged(
    mongo: Client, stack: LocalStack, config: EngineConfig
) -> None:
    """One at a time; what the engine says then is done to the letter, and it goes on exactly."""
    config.set("source", collections=["orders"], start="snapshot")
    orders, lake = mongo[config.name].orders, Lake(stack, config.name)
    orders.insert_many([{"_id": n} for n in range(20)])
    catch_up(config)
    files, numbers = stack.s3.filesystem(), itertools.count(20)
    parts = [each for each in objects_of(config) if "/engines/" not in each]
    assert {each.split("/")[-2] for each in parts} == {"shared", "streams"}
    damages = (None, b'{"format": 1', b"", b"{}")
    noticed = set()
    for path, damaged in itertools.product(parts, damages) if EXPLORE else zip(parts, itertools.cycle(damages)):
        orders.insert_one({"_id": next(numbers)})
        if damaged is None:
            files.rm_file(path)
        else:
            files.pipe_file(path, damaged)
        refused = run_engine(config, "run", "--until-caught-up")
        if damaged is not None and refused.returncode:
            assert "remove that object, and make what it held again" in refused.stderr, path
            assert f"s3://{path}" in refused.stderr
            files.rm_file(path)
        if refused.returncode:
            noticed.add(path)
            assert "headrace state rebuild" in refused.stderr
            said = rebuild(config)
            catch_up(config)
            if "headrace backfill --restart" in said:
                assert run_engine(config, "backfill", "--restart").returncode == 0
    assert noticed == set(parts)
    assert run_engine(config, "verify").returncode == 0
    tokens = [row["_cdc_token"] for row in lake.rows() if row["_cdc_op"] == "insert"]
    assert len(tokens) == len(set(tokens)) == next(numbers) - 20


def check_streamed(lake: Lake, tokens: set[str], loaded: int) -> None:
    """Each of these events is in the lake once, and so is each loaded document."""
    rows = lake.rows()
    read = [row["_id"] for row in rows if row["_cdc_op"] == "read"]
    assert len(set(read)) == len(read) == loaded
    streamed = [row["_cdc_token"] for row in rows if row["_cdc_op"] not in ("read", "loaded")]
    assert len(streamed) == len(set(streamed))
    assert set(streamed) == tokens
    check_types(lake)


@explored("loses the state again and again")
@with_stores(*STORES)
@pytest.mark.parametrize("seed", range(3))
def test_lost_at_random(mongo: Client, stack: LocalStack, config: EngineConfig, seed: int) -> None:
    rng = random.Random(seed)
    watch = rng.choice(["database", "database", "collections"])
    config.set("source", watch=watch, max_readers=3, split={"orders": 2})
    if watch == "database":
        config.set("source", collections=[], split={})
    config.set("batch", rows=rng.choice([200, 2000]))
    lake, plain = Lake(stack, config.name), PlainStream(mongo, config.name, operation_time(mongo))
    replays, start = 0, 0
    for _ in range(6):
        write(mongo, config, start, rng)
        before = lake.object_keys()
        environment = {VARIABLE: f"between_objects:{rng.randrange(1, 4)}"} if rng.random() < 0.7 else {}
        with Engine(config, environment=environment) as engine:
            while len(lake.object_keys()) <= len(before):
                assert engine.process.poll() is None, engine.log_tail()
                start += 50
                write(mongo, config, start, rng)
            time.sleep(rng.random() * 0.5)
            engine.kill_tree()
        start += 50
        lose_state(config)
        replays += rebuild(config).count("will be completed")
        lake.check_no_token_twice()
    catch_up(config)
    assert lake.check_no_token_twice() == plain.stop()
    check_types(lake)
    print(f"{replays} segments replayed")
