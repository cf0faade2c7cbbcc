"""An error with one collection stops only that one, and is visible everywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from bench.local import LocalStack, Mongo
from tests.integration.harness import Engine, EngineConfig, Lake, run_engine

Client = MongoClient[dict[str, Any]]
PASSWORD = "s3cret"


@pytest.fixture
def config(stack: LocalStack, tmp_path: Path, unique: str) -> EngineConfig:
    return EngineConfig(stack, tmp_path, unique, {"retry": {"max_attempts": 3}})


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Mongo]:
    """A replica set with authentication."""
    mongo = Mongo(tmp_path, password="right")
    mongo.start()
    yield mongo
    mongo.members[0].kill()


def stops_alone(engine: Engine, database: Any, good: str, bad: str, cause: str) -> None:
    """``bad`` stops with its reason visible everywhere, and ``good`` continues until the engine is stopped."""

    def stands(status: dict[str, Any], name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(each for each in status["streams"] if each["collections"] == [name])
        return found

    status = engine.wait_for(lambda status: stands(status, bad)["status"] == "failed", "the stream to stop")
    assert cause in stands(status, bad)["error"]
    database[good].insert_many([{"n": n} for n in range(10, 20)])
    status = engine.wait_for(
        lambda status: stands(status, good)["events_committed"] == 20, "more events of the other stream"
    )
    assert stands(status, good)["status"] == "running"
    # A restart would not help, and would interrupt the other stream.
    assert engine.get("/health") == (200, "ok\n")
    code, text = engine.get("/ready")
    assert code == 503
    (line,) = [line for line in text.splitlines() if line.startswith(f"{stands(status, bad)['stream']}: failed: ")]
    assert cause in line
    assert (
        f'headrace_stream_state{{state="failed",stream="{stands(status, bad)["stream"]}"}} 1.0'
        in engine.get("/metrics")[1]
    )
    assert engine.log().count('"stream stopped"') == 1
    assert engine.terminate() == 1
    assert json.loads(engine.log().rstrip().splitlines()[-1])["message"] == "ended with an error"


def test_a_name_that_the_sink_does_not_accept(
    mongo: Client, config: EngineConfig, lake: Lake, tmp_path: Path
) -> None:
    """A path of a file system has at most 4,095 bytes."""
    root = tmp_path
    while len(str(root)) < 3_875:
        root /= "d" * min(200, 3_875 - len(str(root)))
    long = "l" * 200
    config.set("source", collections=["orders", long])
    config.set("sink", url=f"file://{root}")
    database = mongo[config.name]
    for name in ("orders", long):
        database[name].insert_many([{"n": n} for n in range(10)])
    with Engine(config) as engine:
        stops_alone(engine, database, "orders", long, "too long")
    assert sorted(row["n"] for row in lake.rows_in(root)) == list(range(20))


def test_a_collection_that_may_not_be_read(guarded: Mongo, config: EngineConfig, lake: Lake) -> None:
    config.set("source", collections=["orders", "items"], start="now")

    def right_to(*names: str) -> list[dict[str, Any]]:
        actions = ["find", "changeStream"]
        return [{"resource": {"db": config.name, "collection": each}, "actions": actions} for each in names]

    with MongoClient[dict[str, Any]](guarded.uri) as client:
        client.admin.command("createRole", "reader", privileges=right_to("orders"), roles=[])
        client.admin.command("createUser", "reader", pwd=PASSWORD, roles=["reader"])
        uri = guarded.uri.replace("root:right", f"reader:{PASSWORD}").replace("?", "?authSource=admin&")
        config.set("source", uri=uri)
        database = client[config.name]
        with Engine(config) as engine:
            engine.wait_for(
                lambda status: any(each["reading"] for each in status["streams"]), "one stream to read"
            )
            database.orders.insert_many([{"n": n} for n in range(10)])
            stops_alone(engine, database, "orders", "items", "not authorized")
        client.admin.command("updateRole", "reader", privileges=right_to("orders", "items"))
        done = run_engine(config, "run", "--until-caught-up")
        assert done.returncode == 0, done.stderr
    assert sorted(row["n"] for row in lake.rows()) == list(range(20))
