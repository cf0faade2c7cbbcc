"""Resume tokens of real servers: with type bits, in two versions, of split events."""

from __future__ import annotations

import json
import os
import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bson
import pyarrow.parquet as pq
import pytest
from bson import Int64
from pymongo import MongoClient

from bench.local import LocalStack, Mongo, Process
from bench.local.servers import latest_mongod
from engine.failpoints import VARIABLE
from tests.exploring import EXPLORE, rare
from tests.integration.harness import Engine, EngineConfig, Lake, PlainStream, catch_up, operation_time
from tests.integration.workload import a_document, an_id

Client = MongoClient[dict[str, Any]]
MIB = 2**20


@pytest.fixture(params=["6.0.5", "6.0.27"])
def server(request: pytest.FixtureRequest, stack: LocalStack, config: EngineConfig) -> Iterator[Client]:
    """A server of each version."""
    mongo = stack.mongo if request.param == "6.0.5" else request.getfixturevalue("latest")
    assert mongo is not None
    config.set("source", uri=mongo.uri)
    with Client(mongo.uri) as client:
        yield client


def splits(server: Client) -> bool:
    return bool(server.server_info()["version"] != "6.0.5")


def use_sqlite(config: EngineConfig) -> Path:
    path = config.directory / "state.db"
    config.set("state", url=f"sqlite:///{path}")
    return path


def test_resumes_after_events_with_every_kind_of_key(server: Client, config: EngineConfig, lake: Lake) -> None:
    rng = random.Random(5)
    plain = PlainStream(server, config.name, operation_time(server), splits=splits(server))
    for _ in range(12 if EXPLORE else 5):
        for _ in range(rng.randrange(2, 12)):
            server[config.name].orders.insert_one({"_id": an_id(rng)} | a_document(rng))
        server[config.name].orders.insert_one(
            {"_id": rng.choice((Int64(rng.randrange(2**60, 2**61)), rng.random()))}
        )
        catch_up(config)  # the position is the token of the last event, which has type bits
    expected = plain.stop()
    assert lake.check_no_token_twice() == expected
    assert lake.keys() == plain.keys


def test_footers_contain_complete_tokens(server: Client, config: EngineConfig, lake: Lake) -> None:
    start = operation_time(server)
    server[config.name].orders.insert_one({"_id": Int64(2**60 + 1)})
    server[config.name].orders.insert_one({"_id": 70.5})
    catch_up(config)
    (key,) = lake.object_keys()
    with lake.filesystem.open(f"{lake.root}/{key}", "rb") as file:
        facts = pq.ParquetFile(file).metadata.metadata
    stages: list[dict[str, Any]] = [{"$changeStreamSplitLargeEvent": {}}] if splits(server) else []
    with server[config.name].watch(stages, start_at_operation_time=start) as stream:
        tokens = [stream.next()["_id"] for _ in range(2)]
    found = [
        bson.decode(bytes.fromhex(facts[f"headrace.{each}_token".encode()].decode())) for each in ("first", "last")
    ]
    assert found == tokens
    assert [row["_cdc_token"] for row in lake.rows()] == [each["_data"] for each in tokens]


def test_a_position_without_type_bits_resumes_from_its_time(
    server: Client, config: EngineConfig, lake: Lake
) -> None:
    """As stored by an earlier version."""
    state = use_sqlite(config)
    orders = server[config.name].orders
    orders.insert_many([{"_id": Int64(2**60 + n)} for n in range(20)])
    catch_up(config)
    with sqlite3.connect(state) as db:
        ((text,),) = db.execute("select value from fields where name = 'position'").fetchall()
        position = json.loads(text)
        position["token"], bits, _ = position["token"].partition(":")
        assert bits
        db.execute("update fields set value = ? where name = 'position'", (json.dumps(position),))
    db.close()
    orders.insert_many([{"_id": 0.1 + n} for n in range(20)])
    with Engine(config, "--until-caught-up") as engine:
        assert engine.end() == 0, engine.log_tail()
        assert "the server cannot find the resume token" in engine.log()
    catch_up(config)
    assert len(lake.check_no_token_twice()) == 40


@pytest.mark.parametrize("then", [rare("shrinks"), "is gone", "grows", rare("stays")])
def test_resumes_after_a_split_event(latest: Mongo, config: EngineConfig, lake: Lake, then: str) -> None:
    """The token of its last fragment can only be found while the document is as large as it was."""
    config.set("source", uri=latest.uri, full_document_before_change="when_available", collections=["orders"])
    with Client(latest.uri) as client:
        database = client[config.name]
        database.create_collection("orders", changeStreamPreAndPostImages={"enabled": True})
        database.orders.insert_one({"_id": Int64(2**60 + 7), "p": os.urandom(7 * MIB)})
        catch_up(config)
        database.orders.update_one({}, {"$set": {"p": os.urandom(10 * MIB)}})
        catch_up(config)
        match then:
            case "shrinks":
                database.orders.update_one({}, {"$set": {"p": b""}})
            case "is gone":
                database.orders.delete_one({})
            case "grows":
                database.orders.update_one({}, {"$set": {"q": os.urandom(5 * MIB)}})
        database.orders.insert_one({"_id": 70.5})
        catch_up(config)
        catch_up(config)
    found = [(row["_cdc_op"], row["_cdc_token"]) for row in lake.rows()]
    third = {"shrinks": ["update"], "is gone": ["delete"], "grows": ["update"], "stays": []}[then]
    assert [op for op, _ in found] == ["insert", "update", *third, "insert"], found
    update = next(row for row in lake.rows() if row["_cdc_op"] == "update")
    assert update["_cdc_before"] is not None


@pytest.mark.parametrize("point", [rare("before_publish"), "after_publish", "before_commit"])
def test_a_server_is_upgraded_while_segments_are_outstanding(
    stack: LocalStack, tmp_path: Path, unique: str, point: str
) -> None:
    """Intents with tokens of version 1 are replayed from a stream with version 2."""
    mongo = Mongo(tmp_path, cache_gib=0.5)
    mongo.start()
    try:
        config = EngineConfig(stack, tmp_path, unique, {"source": {"uri": mongo.uri}, "batch": {"rows": 7}})
        lake = Lake(stack, unique)
        rng = random.Random(6)
        with Client(mongo.uri) as client:
            documents = [{"_id": an_id(rng)} | a_document(rng) for _ in range(60)]
            for document in documents[:30]:
                client[unique].orders.insert_one(document)
            with Engine(config, environment={VARIABLE: f"{point}:3"}) as engine:
                if point == "before_commit":
                    assert engine.end() == -9
                else:
                    engine.wait_for(
                        lambda s: any(each["restarts"] for each in s["processes"]), "the death of a writer"
                    )
                    engine.kill_tree()
            (member,) = mongo.members
            member.stop()
            binary, environment = latest_mongod()
            newer = Process("newer", [binary, *member.arguments[1:]], tmp_path, environment=environment)
            mongo.members = [newer]
            mongo.start()
            assert client.server_info()["version"] == "6.0.27"
            for document in documents[30:]:
                client[unique].orders.insert_one(document)
            catch_up(config)
        keys = lake.keys()
        assert len(keys) == len(documents)
        assert len({json.dumps(key) for key in keys.values()}) == len(documents)
        assert {token[18:22] for token in lake.check_no_token_twice()} == {"2B02", "2B04"}
    finally:
        mongo.stop()
