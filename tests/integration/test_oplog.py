"""How much of the oplog is left, on a server whose oplog is overwritten within seconds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from bench.local import Mongo
from tests.integration.harness import Engine, EngineConfig, run_engine

SHORT = "the oplog is running out behind a stream"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Mongo]:
    """A server with authentication and an oplog of 2 MiB."""
    mongo = Mongo(tmp_path, password="right", oplog_mib=2, cache_gib=0.25, options=["--syncdelay", "1"])
    mongo.start()
    yield mongo
    mongo.members[0].kill()


def metric(engine: Engine, name: str) -> float | None:
    """The value of a metric with at most one sample."""
    found = re.search(rf"^{name}(?:{{.*}})? (\S+)$", engine.get("/metrics")[1], re.MULTILINE)
    return float(found[1]) if found else None


def test_a_stream_that_stands_still_is_reported_before_it_is_lost(small: Mongo, config: EngineConfig) -> None:
    name = config.name
    with MongoClient[dict[str, Any]](small.uri) as client:
        orders, oplog = client[name].orders, client.local["oplog.rs"]
        config.set("source", uri=small.uri, start="now")
        config.set("batch", rows=1_000_000, interval="1h")  # nothing is committed
        with Engine(config) as engine:
            engine.wait_reading()
            status = engine.wait_for(lambda status: status["oplog_window_s"] is not None, "the oplog's window")
            assert not status["streams"][0]["oplog_short"]
            assert SHORT not in engine.log()
            (first,) = oplog.find().sort("$natural", 1).limit(1)

            def is_short_yet(status: dict[str, Any]) -> bool:
                orders.insert_many([{"text": "x" * 1000} for _ in range(100)])
                return bool(status["streams"][0]["oplog_short"])

            engine.wait_for(is_short_yet, "the warning")
            assert not oplog.find_one({"ts": first["ts"]}), "it has been overwritten"
            assert engine.log().count(SHORT) == 1
            assert f"{name}.orders: the oplog is running out" in engine.get("/health")[1]
            assert metric(engine, "headrace_oplog_headroom_seconds") == 0.0
            assert engine.terminate() == 0
        shown = json.loads(run_engine(config, "status").stdout)
        assert shown["oplog_headroom_s"] >= 0

        # A user who may not read the oplog.
        client[name].command("createUser", "reader", pwd="secret", roles=["read"])
        theirs = small.uri.replace("root:right", "reader:secret")
        config.set("source", uri=f"{theirs}&authSource={name}")
        with Engine(config) as engine:
            engine.wait_for(lambda status: bool(status["oplog_error"]), "the missing right")
            assert metric(engine, "headrace_oplog_headroom_seconds") is None
            assert metric(engine, "headrace_lag_seconds") is not None
            assert engine.log().count("oplog not visible") == 1
            assert "Grant the user read on the database local" in engine.log()
