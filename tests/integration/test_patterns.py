"""Collections and databases by pattern: what servers select, and an engine whose collections come later."""

from __future__ import annotations

from typing import Any

import bson
import pytest
from pymongo import MongoClient

from bench.local import LocalStack
from engine.core.position import Position
from engine.core.specs import StreamSpec
from engine.source.change_stream import ChangeStream
from engine.source.session import starting_position
from tests.integration.harness import Engine, EngineConfig, Lake, catch_up, operation_time

Client = MongoClient[dict[str, Any]]
EVENTS = ["events_", "events_a", "events_a.b", "events_\nb", "events_日本"]
THREE = ["a*b", "axb", r"a\b", "a.b", "a+b"]
OTHERS = ["events", "xevents_a", "Events_a", "ab", "(a)", "e?", "e1"]
LAST = "zz last"


def read(client: Client, start: Position, spec: StreamSpec, last: str = LAST) -> list[dict[str, Any]]:
    """The events of a stream, up to the insert into the collection ``last``."""
    stream = ChangeStream(client, spec, start)
    found: list[dict[str, Any]] = []
    while not (found and found[-1].get("ns", {}).get("coll") == last):
        reply = stream.next()
        found += [bson.decode(reply.document(row)) for row in range(len(reply))]
    stream.close()
    return found[:-1]


@pytest.fixture(params=["6.0.5", "latest"])
def server(request: pytest.FixtureRequest, stack: LocalStack) -> Any:
    mongo: Any = request.getfixturevalue("latest") if request.param == "latest" else stack.mongo
    with MongoClient[dict[str, Any]](mongo.uri) as client:
        yield client


def test_servers_select_by_pattern(server: Client, unique: str) -> None:
    database, start = server[unique], starting_position(server, "now")
    for name in (*EVENTS, *THREE, *OTHERS, LAST):
        database[name].insert_one({})
    for patterns, exclude, expected in [
        (["events_*"], [], EVENTS),
        (["events_??"], [], ["events_\nb", "events_日本"]),
        (["*_?", r"e\?"], ["Events_a"], ["events_a", "xevents_a", "e?"]),
        (["a?b"], [r"a\*b", "a.b"], ["axb", r"a\b", "a+b"]),
        ([r"?\*?", "(*)", r"*\b*"], [], ["a*b", "(a)", r"a\b"]),
        (["*"], ["events*", "a?b", LAST], ["xevents_a", "Events_a", "ab", "(a)", "e?", "e1"]),
    ]:
        spec = StreamSpec("s", "database", unique, (LAST,), patterns=tuple(patterns), exclude=tuple(exclude))
        assert {each["ns"]["coll"] for each in read(server, start, spec)} == set(expected), patterns


def test_servers_select_renames_and_events_of_whole_databases(server: Client, unique: str) -> None:
    database, start = server[unique], starting_position(server, "now")
    for name in ("plain", "events_a", "events_x1", "other"):
        database[name].insert_one({})
    database.plain.rename("events_new")
    database.events_a.rename("away")
    database.other.rename("events_x2")
    database.events_new.drop()
    server.drop_database(unique)
    database[LAST].insert_one({})
    for carries in (False, True):
        spec = StreamSpec(
            "s", "database", unique, (LAST,), 0, 1, carries, patterns=("events_*",), exclude=("events_x*",)
        )
        found = [(each["operationType"], each.get("ns", {}).get("coll")) for each in read(server, start, spec)]
        expected = [("insert", "events_a"), ("rename", "plain"), ("rename", "events_a"), ("drop", "events_new")]
        assert found[:4] == expected
        assert [op for op, _ in found[4:]] == (["dropDatabase", "invalidate"] if carries else [])


def test_servers_select_databases_by_pattern(server: Client, unique: str) -> None:
    start = starting_position(server, "now")
    for name in ("_1", "_2", "_22", "_1x", ""):
        for collection in ("a", "a.b", "tmp_1"):
            server[unique + name][collection].insert_one({})
    for name in ("_1", "_2", "_22"):
        server.drop_database(unique + name)
    server[unique][LAST].insert_one({})
    patterns = (f"{unique}_?.*", f"{unique}.{LAST}")
    spec = StreamSpec("s", "deployment", patterns=patterns, exclude=("*.tmp_*", f"{unique}_2.*"))
    found = [
        (each["operationType"], each["ns"]["db"].removeprefix(unique), each["ns"].get("coll"))
        for each in read(server, start, spec)
    ]
    dropped = [("drop", "_1", "a"), ("drop", "_1", "a.b")]
    assert found[:2] == [("insert", "_1", "a"), ("insert", "_1", "a.b")]
    assert sorted(found[2:-1]) == dropped
    assert found[-1] == ("dropDatabase", "_1", None)


def test_a_collection_that_comes_later_is_captured_from_its_first_event(
    mongo: Client, config: EngineConfig, lake: Lake
) -> None:
    """The snapshot has what existed; then the patterns change, and hand over exactly."""
    database = mongo[config.name]
    for name in ("orders", "events_old", "events_tmp", "logs_old"):
        database[name].insert_many([{"_id": f"{name}{n}"} for n in range(20)])
    start = operation_time(mongo)
    config.set("source", collections=["orders", "events_*"], exclude=["events_tmp*"], start="snapshot")

    def write(*names: str) -> None:
        for name in names:
            database[name].insert_many([{} for _ in range(10)])
            database[name].update_one({}, {"$set": {"seen": True}})

    def is_loaded(status: dict[str, Any]) -> bool:
        backfills = status["backfills"]
        return len(backfills) == 2 and all(each["splits"] == each["splits_total"] for each in backfills)

    with Engine(config) as engine:
        engine.wait_reading()
        write("orders", "events_new", "events_tmp1", "logs_new")
        database.events_new.drop()
        write("events_new")
        engine.wait_for(is_loaded, "loaded")
        assert engine.terminate() == 0
    write("events_between", "logs_old")
    config.set("source", collections=["orders", "events_*", "logs_*"])
    with Engine(config) as engine:  # orders keeps its stream; that of the patterns hands over to another one
        engine.wait_reading()
        write("logs_later", "orders", "events_tmp2")
        engine.wait_for(is_loaded, "loaded")
        assert engine.terminate() == 0
    catch_up(config)  # the end of an engine waits for no event
    wanted = set()
    with database.watch(start_at_operation_time=start) as stream:
        while (event := stream.try_next()) is not None:
            name = event["ns"]["coll"]
            if name in ("orders", "logs_later") or (
                name.startswith("events_") and not name.startswith("events_tmp")
            ):
                wanted.add(event["_id"]["_data"])
    rows = lake.rows()
    assert sorted(row["_cdc_token"] for row in rows if row["_cdc_token"]) == sorted(wanted)
    assert {row["_cdc_collection"] for row in rows if row["_cdc_op"] == "read"} == {
        "orders",
        "events_old",
        "logs_old",
        "logs_new",
    }
