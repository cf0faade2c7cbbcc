"""A transient error pauses the stream that it concerns; a lasting one stops only that stream."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from bench.local import LocalStack, Mongo
from tests.failing import failing
from tests.integration.harness import Engine, EngineConfig, Lake, kill_all, run_engine

Client = MongoClient[dict[str, Any]]
KILLS = ("killOp", "killCursors", "killAllSessions")
# Transient errors of a server; tests/source/test_change_stream.py has more.
CODES = (43, 237, 11601, 1, 8, 24, 50, 96, 112, 136, 202, 211, 246, 365)


@pytest.fixture
def config(stack: LocalStack, tmp_path: Path, unique: str) -> EngineConfig:
    return EngineConfig(stack, tmp_path, unique, {"source": {"collections": ["orders", "items"]}})


class Writing:
    """Inserts into both collections; afterwards each document must be in the lake once."""

    def __init__(self, mongo: Client, config: EngineConfig, engine: Engine) -> None:
        self._database = mongo[config.name]
        self._engine = engine
        self.count = 0

    def insert(self, *collections: str) -> None:
        for name in collections or ("orders", "items"):
            self._database[name].insert_many([{"n": self.count + n} for n in range(10)])
            self.count += 10

    def wait_landed(self, lost: int = 0) -> None:
        """Wait until all inserts are committed."""
        self._engine.wait_for(
            lambda status: sum(each["events_committed"] for each in status["streams"]) == self.count - lost,
            f"{self.count - lost} events",
        )


def stream_of(status: dict[str, Any], collection: str) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in status["streams"] if each["stream"].endswith(collection))
    return found


def kill_what_it_runs(mongo: Client, database: str, how: str) -> int:
    """Kill the engine's operations and cursors, as an administrator may; how many there were."""
    if how == "killAllSessions":
        mongo.admin.command("killAllSessions", [])
        return 1
    mine: dict[str, Any] = {"appName": "headrace", "$or": [{"op": "getmore"}, {"type": "idleCursor"}]}
    stages: list[dict[str, Any]] = [{"$currentOp": {"idleCursors": True, "allUsers": True}}, {"$match": mine}]
    killed = 0
    for each in mongo.admin.aggregate(stages):
        cursor = each.get("cursor", {}).get("cursorId")
        if how == "killOp" and "opid" in each:
            killed += 1
            mongo.admin.command("killOp", op=each["opid"])
        elif how == "killCursors" and cursor:
            killed += 1
            mongo[database].command("killCursors", each["ns"].partition(".")[2], cursors=[cursor])
    return killed


def test_operations_killed_by_an_administrator_are_resumed(
    mongo: Client, config: EngineConfig, lake: Lake
) -> None:
    with Engine(config) as engine:
        engine.wait_reading()
        writing = Writing(mongo, config, engine)
        for how in KILLS * 2:
            while not kill_what_it_runs(mongo, config.name, how):
                pass
            writing.insert()
            writing.wait_landed()
        assert engine.terminate() == 0
        assert '"stream stopped"' not in engine.log()
        assert "MongoDB is away" not in engine.log()
    assert Counter(row["n"] for row in lake.rows()) == Counter(range(writing.count))


def test_streams_and_a_load_whose_operations_are_killed(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    for number, name in enumerate(("orders", "items")):
        documents = [{"loaded": 3000 * number + n, "text": "x" * 100} for n in range(3000)]
        mongo[config.name][name].insert_many(documents)
    config.set("source", start="snapshot")
    config.set("backfill", split_size="64KiB", readers=2, max_documents_per_s=800)
    with Engine(config) as engine:
        engine.wait_reading()
        writing = Writing(mongo, config, engine)
        rounds: Counter[str] = Counter()
        for how in itertools.cycle(KILLS):
            rounds[how] += kill_what_it_runs(mongo, config.name, how)
            writing.insert()
            status = engine.wait_for(lambda status: bool(status["backfills"]), "status")
            if all(each["splits"] == each["splits_total"] for each in status["backfills"]):
                break
            time.sleep(0.2)
        writing.wait_landed()
        assert engine.terminate() == 0
        assert '"stream stopped"' not in engine.log()
    assert all(rounds[how] > 2 for how in KILLS), rounds
    rows = lake.rows()
    loaded = Counter(row["loaded"] for row in rows if row["_cdc_op"] == "read" and row["loaded"] is not None)
    assert loaded == Counter(range(6000))
    assert Counter(row["n"] for row in rows if row["_cdc_op"] == "insert") == Counter(range(writing.count))


def test_transient_error_codes(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    with Engine(config) as engine:
        engine.wait_reading()
        writing = Writing(mongo, config, engine)
        for code in CODES:
            for command in ("getMore", "aggregate"):
                # The next getMore reopens the stream, which meets the second failure.
                if command == "aggregate":
                    mongo.admin.command("killAllSessions", [])
                with failing(mongo, command, 2, appName="headrace", errorCode=code):
                    writing.insert()
                    writing.wait_landed()
        assert engine.terminate() == 0
    assert Counter(row["n"] for row in lake.rows()) == Counter(range(writing.count))


def test_a_lasting_error_stops_only_its_stream(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    config.set("retry", max_attempts=4)
    with Engine(config) as engine:
        engine.wait_reading()
        writing = Writing(mongo, config, engine)
        data = {"failCommands": ["getMore", "aggregate"], "errorCode": 8, "appName": "headrace"}
        data["namespace"] = f"{config.name}.orders"
        mongo.admin.command("configureFailPoint", "failCommand", mode="alwaysOn", data=data)
        try:
            status = engine.wait_for(
                lambda status: stream_of(status, "orders")["status"] == "failed", "the stream to stop"
            )
        finally:
            mongo.admin.command("configureFailPoint", "failCommand", mode="off")
        assert "code 8" in stream_of(status, "orders")["error"]
        assert stream_of(status, "items")["status"] == "running"
        assert '"level":"error"' in engine.log()
        writing.insert("items")
        writing.wait_landed()
        writing.insert("orders")
        assert engine.terminate() == 1
    assert "longer than the [retry] budget" in engine.log_tail()
    done = run_engine(config, "run", "--until-caught-up")
    assert done.returncode == 0, done.stderr
    assert Counter(row["n"] for row in lake.rows()) == Counter(range(writing.count))


def test_a_view_among_the_collections(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    config.set("source", collections=["orders", "seen"])
    mongo[config.name].orders.insert_one({"n": 0})
    mongo[config.name].command("create", "seen", viewOn="orders", pipeline=[])
    done = run_engine(config, "run", "--until-caught-up")
    assert done.returncode == 1, done.stderr
    assert "is a view" in done.stderr
    assert [row["n"] for row in lake.rows()] == [0]
    config.set("source", collections=["seen"])
    config.set("state", prefix=f"{config.name}-alone")
    assert run_engine(config).returncode == 2


def test_splits_that_fail_are_left_for_the_next_run(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    config.set("retry", max_attempts=3)
    config.set("backfill", split_size="64KiB", readers=1)
    for name in ("orders", "items"):
        first = 0 if name == "orders" else 3000
        mongo[config.name][name].insert_many([{"n": first + n, "text": "x" * 100} for n in range(3000)])
    data = {"failCommands": ["find"], "errorCode": 8, "appName": "headrace", "namespace": f"{config.name}.items"}
    mongo.admin.command("configureFailPoint", "failCommand", mode="alwaysOn", data=data)
    try:
        done = run_engine(config, "backfill")
    finally:
        mongo.admin.command("configureFailPoint", "failCommand", mode="off")
    assert done.returncode == 1, done.stderr
    assert "longer than the [retry] budget" in done.stderr
    assert {row["n"] for row in lake.rows()} == set(range(3000))
    done = run_engine(config, "backfill")
    assert done.returncode == 0, done.stderr
    assert Counter(row["n"] for row in lake.rows()) == Counter(range(6000))


@pytest.mark.parametrize("command", ["explain", "listCollections", "aggregate"])
def test_planning_survives_a_transient_error(
    mongo: Client, config: EngineConfig, lake: Lake, command: str
) -> None:
    mongo[config.name].orders.insert_many([{"n": n} for n in range(100)])
    config.set("source", collections=["orders"])
    with failing(mongo, command, 3, appName="headrace", errorCode=11601):
        done = run_engine(config, "backfill", "--filter", '{"n": {"$gte": 50}}')
    assert done.returncode == 0, done.stderr
    assert Counter(row["n"] for row in lake.rows()) == Counter(range(50, 100))


def test_a_password_is_changed_for_a_while(guarded: Mongo, config: EngineConfig, lake: Lake) -> None:
    """A password that has worked is retried: by a running reader, and by a new one."""
    config.set("source", uri=guarded.uri)
    config.set("retry", max_attempts=30)
    with MongoClient[dict[str, Any]](guarded.uri) as client, Engine(config) as engine:
        engine.wait_reading()
        writing = Writing(client, config, engine)
        writing.insert()
        writing.wait_landed()
        client.admin.command("updateUser", "root", pwd="other")
        try:
            assert "Authentication failed" not in engine.log()
            with failing(client, "getMore", 2, appName="headrace", closeConnection=True):
                wait_for_log(engine, "Authentication failed", 2)
            kill_all(engine.pids("reader")[:1])
            wait_for_log(engine, '"process died"', 3)
        finally:
            client.admin.command("updateUser", "root", pwd="right")
        writing.insert()
        writing.wait_landed()
        assert engine.terminate() == 0
    assert Counter(row["n"] for row in lake.rows()) == Counter(range(writing.count))


def wait_for_log(engine: Engine, text: str, times: int) -> None:
    deadline = time.monotonic() + 60
    while engine.log().count(text) < times:
        assert engine.process.poll() is None, engine.log_tail()
        assert time.monotonic() < deadline, engine.log_tail()
        time.sleep(0.05)
