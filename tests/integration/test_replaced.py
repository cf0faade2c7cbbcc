"""$out, and renames from and to captured collections: the lake ends up equal to the collections."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bson import Timestamp
from pymongo import MongoClient

from bench.local import LocalStack, Mongo
from engine.failpoints import VARIABLE
from tests.exploring import rare
from tests.integration.harness import Engine, EngineConfig, Lake, PlainStream, catch_up, operation_time, run_engine

Client = MongoClient[dict[str, Any]]
VIEW = Path(__file__).parents[2] / "configs" / "duckdb" / "current_state.sql"
CAPTURED = ["out", "onto", "source", "target", "away", "again", "merged", "quiet"]
WATCHES: dict[str, dict[str, Any]] = {
    "own streams": {"max_readers": 8},
    "shared streams": {"max_readers": 2},
    "split": {"collections": ["out", "onto"], "split": {"out": 2}},
    "database": {"watch": "database", "collections": []},
    "expanded": {"watch": "database", "collections": [], "expanded_events": True},
    "deployment": {"watch": "deployment", "collections": []},
}


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Mongo]:
    """A server without databases of other tests, which a snapshot of the deployment would load."""
    mongo = Mongo(tmp_path, cache_gib=0.25)
    mongo.start()
    yield mongo
    mongo.members[0].kill()


def state_in_lake(lake: Lake, database: str, collection: str) -> dict[int, Any]:
    """The documents of a collection by ``_id``, according to the view."""
    directory = f"cdc_database={database}/cdc_collection={collection}/"
    if not any(key.startswith(directory) and key.endswith(".parquet") for key in lake.object_keys()):
        return {}
    view = f"{VIEW.read_text()} CREATE VIEW rows AS FROM current_state('{{{{url}}}}/{directory}**/*.parquet');"
    rows = lake.query(view, "FROM rows").to_pylist()
    assert not any(row["_cdc_pending"] for row in rows)
    return {row["_id"]: row["n"] for row in rows}


def state_in_mongo(client: Client, database: str, collection: str) -> dict[int, Any]:
    return {each["_id"]: each["n"] for each in client[database][collection].find()}


def fill(client: Client, database: str) -> None:
    for name in (*CAPTURED, "spare", "other"):
        client[database][name].insert_many([{"_id": n, "n": f"{name} {n}"} for n in range(6)])


def replace(client: Client, database: str) -> None:
    """Everything that gives a collection other documents, with events before and after."""
    db = client[database]
    for name in CAPTURED:
        db[name].update_one({"_id": 1}, {"$set": {"n": "before"}})
    db.spare.aggregate([{"$match": {"_id": {"$gt": 3}}}, {"$out": "out"}])
    db.out.insert_one({"_id": 100, "n": "after the first"})
    db.spare.aggregate([{"$match": {"_id": {"$lt": 3}}}, {"$out": "out"}])
    db.other.delete_many({"_id": {"$lt": 2}})
    db.other.rename("onto", dropTarget=True)
    db.source.delete_one({"_id": 0})
    db.source.rename("target", dropTarget=True)
    db.away.rename("elsewhere")
    db.again.drop()
    db.spare.insert_one({"_id": 200, "n": "to merge"})
    db.spare.aggregate([{"$merge": {"into": "merged"}}])
    for name in set(CAPTURED) - {"away", "quiet"}:
        db[name].insert_one({"_id": 300, "n": f"after everything, {name}"})
        db[name].update_one({"_id": 2}, {"$set": {"n": "changed after everything"}})


def check(client: Client, config: EngineConfig, lake: Lake, captured: list[str]) -> None:
    for name in captured:
        assert state_in_lake(lake, config.name, name) == state_in_mongo(client, config.name, name), name
    assert not [key for key in lake.object_keys() if "collection=tmp" in key]
    events = [(row["_cdc_stream"], row["_cdc_token"]) for row in lake.rows() if row["_cdc_token"]]
    assert len(set(events)) == len(events)


# Both servers send the same events.
CASES = [("6.0.5", "own streams"), ("6.0.5", "deployment")]
CASES += [
    ("6.0.27", "shared streams"),
    ("6.0.27", "database"),
    rare("6.0.5", "expanded"),
    rare("6.0.5", "shared streams"),
    rare("6.0.5", "database"),
]


@pytest.mark.parametrize(("version", "watch"), CASES)
def test_the_lake_ends_up_equal_to_the_collections(
    stack: LocalStack,
    config: EngineConfig,
    lake: Lake,
    version: str,
    watch: str,
    request: pytest.FixtureRequest,
) -> None:
    if watch == "deployment":
        mongod = request.getfixturevalue("alone")
    else:
        mongod = stack.mongo if version == "6.0.5" else request.getfixturevalue("latest")
    assert isinstance(mongod, Mongo)
    source = {"uri": mongod.uri, "collections": CAPTURED, "start": "snapshot"} | WATCHES[watch]
    config.set("source", **source)
    config.set("memory", limit="2GiB")
    with Client(mongod.uri) as client:
        fill(client, config.name)
        catch_up(config)
        at = operation_time(client)
        start = Timestamp(at.time, at.inc + 1)
        plain = PlainStream(client, config.name, start, splits=client.server_info()["version"] != "6.0.5")
        replace(client, config.name)
        catch_up(config)
        tokens = plain.stop()
        captured = source["collections"] or [*CAPTURED, "spare", "other", "elsewhere"]
        check(client, config, lake, captured)
    rows = lake.rows()
    if watch in ("database", "deployment"):  # every event of the database, those of temporary collections included
        assert tokens <= {row["_cdc_token"] for row in rows}
    renames = [row for row in rows if row["_cdc_op"] == "rename" and row["_cdc_database"] == config.name]
    said = {(row["_cdc_collection"], json.loads(row["_cdc_extra"])["to"]["coll"]) for row in renames}
    ends = {name for name, _ in said} & set(captured)
    own = {"out", "onto", "source", "target", "away"} if watch == "own streams" else {"out"}
    assert own <= ends
    for row in renames:
        extra = json.loads(row["_cdc_extra"])
        own_name = extra.get("ns", {"coll": row["_cdc_collection"]})["coll"]
        assert extra["to"]["coll"] == row["_cdc_collection"] or own_name == row["_cdc_collection"]


@pytest.mark.parametrize(
    "point", [rare("before_intent"), rare("after_publish"), "before_commit", rare("after_commit")]
)
def test_a_reload_is_not_forgotten(mongo: Client, config: EngineConfig, lake: Lake, point: str) -> None:
    """Whichever process dies, at any point of the commit of the rename or of the load."""
    config.set("source", collections=["out"], start="snapshot")
    fill(mongo, config.name)
    catch_up(config)
    mongo[config.name].spare.aggregate([{"$out": "out"}])
    for times in (1, 2):
        died = run_engine_dying(config, f"{point}:{times}")
        if died == 0:
            break
    catch_up(config)
    check(mongo, config, lake, ["out"])
    objects = lake.object_keys()
    catch_up(config)  # nothing is left to load
    assert lake.object_keys() == objects


def run_engine_dying(config: EngineConfig, point: str) -> int:
    with Engine(config, "--until-caught-up", environment={VARIABLE: point}) as engine:
        return engine.end()


def test_streams_continue_during_a_reload(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    """A running engine loads it by itself, and reports it until then."""
    config.set("source", collections=["out", "quiet"], start="snapshot")
    fill(mongo, config.name)
    with Engine(config) as engine:
        engine.wait_for(lambda s: bool(s["backfills"]) and all(b["splits"] for b in s["backfills"]), "loaded")
        mongo[config.name].spare.aggregate([{"$out": "out"}])
        # The second load has a split and a mark; the first had no mark.
        engine.wait_for(lambda s: any(b["splits"] == b["splits_total"] == 2 for b in s["backfills"]), "again")
        assert "their new content will be loaded" in engine.log()
        engine.wait_for(
            lambda s: not any(stream["replaced"] for stream in s["streams"]), "no replaced collections"
        )
        mongo[config.name].out.insert_one({"_id": 400, "n": "later"})
        mongo[config.name].quiet.insert_one({"_id": 400, "n": "later"})
        assert engine.terminate() == 0, engine.log_tail()
    catch_up(config)
    check(mongo, config, lake, ["out", "quiet"])


def test_a_signal_between_two_runs_is_obeyed(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    """One run has ended for the load, and the next one has not started."""
    config.set("source", collections=["out"], start="snapshot")
    fill(mongo, config.name)
    with Engine(config) as engine:
        engine.wait_for(lambda s: bool(s["backfills"]) and all(b["splits"] for b in s["backfills"]), "loaded")
        mongo[config.name].spare.aggregate([{"$out": "out"}])
        while "starting over to reload" not in engine.log():
            assert engine.process.poll() is None, engine.log_tail()
        assert engine.terminate() == 0, engine.log_tail()
    catch_up(config)
    check(mongo, config, lake, ["out"])


@pytest.mark.parametrize("policy", [rare("warn"), "fail"])
def test_the_command_loads_what_was_replaced(mongo: Client, config: EngineConfig, lake: Lake, policy: str) -> None:
    config.set("source", collections=["out", "quiet"], start="snapshot", on_replaced=policy)
    fill(mongo, config.name)
    catch_up(config)
    mongo[config.name].spare.aggregate([{"$out": "out"}])
    mongo[config.name].out.insert_one({"_id": 400, "n": "later"})
    mongo[config.name].quiet.insert_one({"_id": 400, "n": "later"})
    done = run_engine(config, "run", "--until-caught-up")
    assert done.returncode == (1 if policy == "fail" else 0)
    assert "headrace backfill --collections out --restart" in done.stderr
    assert state_in_lake(lake, config.name, "quiet") == state_in_mongo(mongo, config.name, "quiet")
    if policy == "fail":
        again = run_engine(config, "run", "--until-caught-up")
        assert again.returncode == 1
        assert "headrace backfill --collections out --restart" in again.stderr
    loaded = run_engine(config, "backfill", "--collections", "out", "--restart")
    assert loaded.returncode == 0, loaded.stderr[-4000:]
    catch_up(config)
    check(mongo, config, lake, ["out", "quiet"])
