"""Events above 16 MiB land without a document if the server cannot split them, and whole if it can."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from bson.json_util import RELAXED_JSON_OPTIONS as RELAXED
from bson.json_util import dumps
from pymongo import MongoClient

from bench.local import Mongo
from engine.failpoints import VARIABLE
from tests.integration.harness import Engine, EngineConfig, Lake, catch_up, operation_time

Client = MongoClient[dict[str, Any]]
MIB = 2**20


def as_json(value: Any) -> Any:
    return json.loads(dumps(value, json_options=RELAXED))


def events_of(client: Client, database: str, start: Any, **options: Any) -> dict[str, tuple[Any, ...]]:
    """Operation, key and update of each event, by token; a split event has the token of its last fragment."""
    found: dict[str, dict[str, Any]] = {}
    stages: list[dict[str, Any]] = [{"$changeStreamSplitLargeEvent": {}}] if options else []
    fragments: dict[str, Any] = {}
    options |= {"start_at_operation_time": start, "max_await_time_ms": 200}
    with client[database].watch(stages, **options) as stream:
        while (event := stream.try_next()) is not None:
            fragments |= event
            split = event.get("splitEvent", {"fragment": 1, "of": 1})
            if split["fragment"] == split["of"]:
                found[event["_id"]["_data"]], fragments = fragments, {}
    wanted = "operationType", "documentKey", "updateDescription"
    return {token: tuple(as_json(event.get(name)) for name in wanted) for token, event in found.items()}


def rows_of(lake: Lake) -> dict[str, tuple[Any, ...]]:
    """The same, from the lake."""
    lake.check_no_token_twice()

    def read(text: str | None) -> Any:
        return None if text is None else json.loads(text)

    return {
        row["_cdc_token"]: (row["_cdc_op"], read(row["_cdc_key"]), read(row.get("_cdc_update")))
        for row in lake.rows()
    }


def change(client: Client, name: str, size: int) -> None:
    """Small events, and one among them that changes most of a large document."""
    orders = client[name].orders
    orders.update_one({"_id": 1}, {"$set": {"n": size}})
    orders.update_one({"_id": "large"}, {"$set": {"p": os.urandom(size)}})
    for n in range(5):
        orders.update_one({"_id": 1}, {"$set": {"n": n}})
        orders.insert_one({"_id": {"n": n, "size": size}})


def die(config: EngineConfig, point: str) -> None:
    """Run an engine until a process dies at a failpoint, and kill the rest."""
    with Engine(config, environment={VARIABLE: f"{point}:1"}) as engine:
        if point == "before_commit":
            assert engine.end() == -9
        else:
            engine.wait_for(lambda s: any(each["restarts"] for each in s["processes"]), "the death of a writer")
            engine.kill_tree()


@pytest.mark.parametrize(
    ("before", "size", "without", "point"),
    [
        ("off", 9 * MIB, ["fullDocument"], "after_publish"),
        ("when_available", 9 * MIB, ["fullDocumentBeforeChange", "fullDocument"], "before_commit"),
        ("when_available", 6 * MIB, ["fullDocumentBeforeChange"], "before_commit"),
    ],
)
def test_continues_past_an_event_that_the_server_cannot_deliver(
    mongo: Client, config: EngineConfig, lake: Lake, before: str, size: int, without: list[str], point: str
) -> None:
    """It lands with what the oplog has of it, also in a replay; later events are complete."""
    config.set("source", full_document_before_change=before)
    start = operation_time(mongo)
    mongo[config.name].create_collection("orders", changeStreamPreAndPostImages={"enabled": True})
    mongo[config.name].orders.insert_many([{"_id": "large", "p": os.urandom(7 * MIB)}, {"_id": 1}])
    catch_up(config)
    change(mongo, config.name, size)
    die(config, point)
    with Engine(config) as engine:
        engine.wait_for(lambda status: status["streams"][0]["truncated_events"] == 1, "the event past 16 MiB")
        assert engine.terminate() == 0, engine.log_tail()
        told = [line for line in map(json.loads, engine.log().splitlines()) if "past 16 MiB" in line["message"]]
        assert told
        assert all(line["collection"] == f"{config.name}.orders" and line["without"] == without for line in told)
        assert all(line["stream"] and line["cluster_time"] for line in told)
    change(mongo, config.name, 100)
    catch_up(config)
    assert rows_of(lake) == events_of(mongo, config.name, start)
    extras = [json.loads(row["_cdc_extra"]) for row in lake.rows() if row.get("_cdc_extra")]
    assert [extra["truncated"] for extra in extras if "truncated" in extra] == [without]
    bare = [row["_cdc_key"] for row in lake.rows() if not row["_cdc_has_document"]]
    assert bare == (['{"_id":"large"}'] if "fullDocument" in without else [])


def test_a_split_event_lands_whole(latest: Mongo, config: EngineConfig, lake: Lake) -> None:
    config.set("source", uri=latest.uri, full_document_before_change="when_available")
    with Client(latest.uri) as client:
        start = operation_time(client)
        client[config.name].create_collection("orders", changeStreamPreAndPostImages={"enabled": True})
        client[config.name].orders.insert_many([{"_id": "large", "p": os.urandom(7 * MIB)}, {"_id": 1}])
        catch_up(config)
        change(client, config.name, 9 * MIB)
        die(config, "after_publish")
        catch_up(config)
        as_configured = {"full_document": "updateLookup", "full_document_before_change": "whenAvailable"}
        assert rows_of(lake) == events_of(client, config.name, start, **as_configured)
    assert all(row["_cdc_has_document"] for row in lake.rows())
    assert not any(row.get("_cdc_extra") for row in lake.rows())
