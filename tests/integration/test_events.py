"""Events that are rare or large, against what the plain driver sees of them."""

from __future__ import annotations

import json
import os
from collections import Counter
from typing import Any

from bson.timestamp import Timestamp
from pymongo import MongoClient

from engine.failpoints import VARIABLE
from tests.integration.harness import Engine, EngineConfig, Lake, catch_up, operation_time, run_engine

Client = MongoClient[dict[str, Any]]
# Not part of what an expanded event adds to others: these have columns of their own.
OWN = {"_id", "operationType", "clusterTime", "wallTime", "ns", "documentKey", "fullDocument", "updateDescription"}


def events_of(client: Client, database: str, start: Timestamp, **options: Any) -> dict[str, dict[str, Any]]:
    """All events of a database since a time, by token; beyond invalidates as well."""
    found: dict[str, dict[str, Any]] = {}
    after: dict[str, Any] = {"start_at_operation_time": start}
    while True:
        with client[database].watch(**after, **options, max_await_time_ms=200) as stream:
            while stream.alive and (event := stream.try_next()) is not None:
                found[event["_id"]["_data"]] = event
            if stream.alive:
                return found
            after = {"start_after": stream.resume_token}


def test_transactions_of_several_oplog_entries(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    """Over 1,000 operations, and over 16 MB: all events have one cluster time, and segments end within it."""
    config.set("batch", rows=300)
    start, orders = operation_time(mongo), mongo[config.name].orders
    mongo[config.name].create_collection("orders")

    def transaction(documents: list[dict[str, Any]]) -> None:
        with mongo.start_session() as session, session.start_transaction():
            for at in range(0, len(documents), 500):
                orders.insert_many(documents[at : at + 500], session=session)
            orders.update_one({"_id": documents[0]["_id"]}, {"$set": {"last": True}}, session=session)

    transaction([{"_id": f"many{n}"} for n in range(1500)])
    orders.insert_one({"_id": "between"})
    transaction([{"_id": f"large{n}", "p": os.urandom(2**20)} for n in range(20)])
    orders.insert_one({"_id": "behind"})
    for point in ("after_publish:2", "before_commit:3"):  # the first in a writer, the second in the supervisor
        with Engine(config, environment={VARIABLE: point}) as engine:
            if point.startswith("before_commit"):
                assert engine.end() == -9
            else:
                engine.wait_for(
                    lambda s: any(each["restarts"] for each in s["processes"]), "the death of a writer"
                )
                engine.kill_tree()
    catch_up(config)
    expected = events_of(mongo, config.name, start)
    rows = lake.rows()
    assert Counter(row["_cdc_token"] for row in rows) == Counter(expected.keys())
    transactions = Counter((row["_cdc_timestamp"], row["_cdc_txn"]) for row in rows)
    assert sorted(transactions.values()) == [1, 1, 21, 1501]
    for row in rows:
        event = expected[row["_cdc_token"]]
        assert (row["_cdc_op"], row["_id"]) == (event["operationType"], event["documentKey"]["_id"])
        assert (row["_cdc_txn"] is None) == ("txnNumber" not in event)


def test_what_happens_to_collections_and_databases(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    """Dropped, renamed, recreated under the same name, and all that again after the database was dropped."""
    config.set("source", expanded_events=True, on_replaced="warn", collections=["a", "b", "c0", "c1"])
    database, start = mongo[config.name], operation_time(mongo)
    for round_ in range(2):
        database.a.insert_one({"_id": f"{round_}"})
        database.a.create_index("n", name="by_n")
        database.command("collMod", "a", index={"name": "by_n", "hidden": True})
        database.a.drop_index("by_n")
        database.a.drop()
        database.a.insert_one({"_id": f"{round_} again"})
        database.b.insert_one({"_id": round_})
        database.b.rename(f"c{round_}")
        database[f"c{round_}"].insert_one({"_id": f"{round_} renamed"})
        mongo.drop_database(config.name)
        database[f"c{round_}"].insert_one({"_id": f"{round_} later"})
        catch_up(config)
    # What ends the streams of collections is an invalidate of their own; that of the database's stream is another.
    rows = [row for row in lake.rows() if row["_cdc_op"] != "invalidate"]
    every = events_of(mongo, config.name, start, show_expanded_events=True)
    expected = {
        token: each for token, each in every.items() if each["operationType"] not in ("dropDatabase", "invalidate")
    }
    wanted = Counter(expected.keys())
    # A rename is an event of both collections, and each has a stream of its own.
    wanted.update(token for token, each in expected.items() if each["operationType"] == "rename")
    assert Counter(row["_cdc_token"] for row in rows) == wanted
    by_operation = Counter(row["_cdc_op"] for row in rows)
    assert by_operation["createIndexes"] == by_operation["modify"] == by_operation["dropIndexes"] == 2
    assert by_operation["create"] == 8
    for row in rows:
        event, extra = expected[row["_cdc_token"]], json.loads(row["_cdc_extra"] or "{}")
        assert set(extra) - {"ns"} == set(event) - OWN
        assert row["_cdc_collection"] == (event["to"] if "ns" in extra else event["ns"])["coll"]


def test_a_required_image_that_is_missing_stops_the_stream_with_the_remedy(
    mongo: Client, config: EngineConfig, lake: Lake
) -> None:
    """At once: no retry brings it back. Without requiring it, the stream continues exactly where it stands."""
    config.set("source", full_document_before_change="required")
    orders, start = mongo[config.name].orders, operation_time(mongo)
    mongo[config.name].create_collection("orders", changeStreamPreAndPostImages={"enabled": True})
    orders.insert_one({"_id": 1, "n": 1})
    orders.update_one({"_id": 1}, {"$set": {"n": 2}})
    catch_up(config)
    mongo[config.name].command("collMod", "orders", changeStreamPreAndPostImages={"enabled": False})
    orders.update_one({"_id": 1}, {"$set": {"n": 3}})
    done = run_engine(config, "run", "--until-caught-up")
    assert done.returncode == 1
    assert "Set source.full_document_before_change to" in done.stderr
    assert "changeStreamPreAndPostImages" in done.stderr
    assert "failed; starting over" not in done.stderr
    assert "is away" not in done.stderr
    config.set("source", full_document_before_change="when_available")
    catch_up(config)
    rows = lake.rows()
    assert [row["_cdc_token"] for row in rows] == sorted(events_of(mongo, config.name, start))
    assert [row["_cdc_before"] for row in rows] == [None, '{"_id":1,"n":1}', None]
