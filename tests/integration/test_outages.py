"""Servers that are away when an engine starts, which waits for them. For a running one see ``fault_rows.py``."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from bench.local import LocalStack, Mongo, Process
from bench.local.servers import accepts_connections, wait_until
from tests.integration.harness import Engine, EngineConfig, Lake


@pytest.fixture(scope="module")
def servers() -> Iterator[LocalStack]:
    """Servers for this module, which it may break."""
    with LocalStack() as stack:
        yield stack


@contextmanager
def inserting(uri: str, database: str) -> Iterator[None]:
    """Insert documents meanwhile, whenever the server is up."""
    stopped = threading.Event()

    def run() -> None:
        with MongoClient[dict[str, Any]](uri, serverSelectionTimeoutMS=500) as client:
            while not stopped.is_set():
                with suppress(PyMongoError):
                    client[database].orders.insert_many([{"text": "x" * 100} for _ in range(20)])
                time.sleep(0.02)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


@pytest.mark.usefixtures("impatient_s3")
@pytest.mark.parametrize("server", ["mongo", "s3", "state"])
def test_away_at_the_start(servers: LocalStack, tmp_path: Path, unique: str, server: str) -> None:
    """An engine that is started before its servers waits for them."""
    assert servers.mongo is not None
    with MongoClient[dict[str, Any]](servers.mongo.uri) as client:
        client[unique].orders.insert_many([{"n": n} for n in range(100)])
    processes: dict[str, Process] = {
        "mongo": servers.mongo.members[0],
        "s3": servers.s3.process,
        "state": servers.valkey.process,
    }
    config = EngineConfig(servers, tmp_path, unique, {"retry": {"max_attempts": 60}})
    config.set("source", uri=f"{servers.mongo.uri}&serverSelectionTimeoutMS=300")
    processes[server].kill()
    try:
        engine = Engine(config)
        deadline = time.monotonic() + 240
        while engine.log().count('"level":"warning"') < 4:  # more attempts than while starting normally
            assert engine.process.poll() is None, engine.log_tail()
            assert time.monotonic() < deadline, engine.log_tail()
            time.sleep(0.05)
    finally:
        processes[server].start()
    with engine:
        engine.wait_for(lambda status: status["streams"][0]["events_committed"] == 100, "all events")
        assert engine.terminate() == 0
    assert len(Lake(servers, unique).check_no_token_twice()) == 100


def test_mongodb_is_away_when_a_backfill_is_planned(servers: LocalStack, tmp_path: Path, unique: str) -> None:
    assert servers.mongo is not None
    with MongoClient[dict[str, Any]](servers.mongo.uri) as client:
        client[unique].orders.insert_many([{"n": n} for n in range(100)])
    config = EngineConfig(servers, tmp_path, unique, {"retry": {"max_attempts": 60}})
    config.set("source", uri=f"{servers.mongo.uri}&serverSelectionTimeoutMS=300")
    servers.mongo.members[0].kill()
    try:
        engine = Engine(config, command="backfill")
        wait_until(lambda: engine.log().count("MongoDB is away") >= 2, "attempts")
    finally:
        servers.mongo.start()
    with engine:
        assert engine.end() == 0, engine.log_tail()
    assert sorted(row["n"] for row in Lake(servers, unique).rows() if row["_cdc_op"] == "read") == [*range(100)]


def test_a_member_without_a_replica_set_is_waited_for(servers: LocalStack, tmp_path: Path, unique: str) -> None:
    """Every member is in this state for a moment after its start; a standalone server would be refused."""
    mongo = Mongo(tmp_path)
    (member,), (port,) = mongo.members, mongo.ports
    member.start()
    try:
        member.wait_ready(lambda: accepts_connections(port))
        config = EngineConfig(servers, tmp_path, unique, {"retry": {"max_attempts": 60}})
        uri = f"mongodb://127.0.0.1:{port}/?directConnection=true"
        config.set("source", uri=uri)
        with Engine(config) as engine, MongoClient[dict[str, Any]](uri) as client:
            wait_until(lambda: engine.log().count("neither its primary nor a secondary") >= 2, "attempts")
            hosts = [{"_id": 0, "host": f"127.0.0.1:{port}"}]
            client.admin.command("replSetInitiate", {"_id": "rs0", "members": hosts})
            wait_until(lambda: bool(client.admin.command("hello").get("isWritablePrimary")), "the primary")
            client[unique].orders.insert_many([{"n": n} for n in range(100)])
            engine.wait_for(lambda status: status["streams"][0]["events_committed"] == 100, "all events")
            assert engine.terminate() == 0, engine.log_tail()
    finally:
        member.kill()
    assert [row["n"] for row in Lake(servers, unique).rows()] == [*range(100)]
