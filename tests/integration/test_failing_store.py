"""The state store of a running engine loses data, or refuses for a while: nothing lands twice."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from bson.timestamp import Timestamp
from pymongo import MongoClient

from bench.local import LocalStack
from bench.local.servers import Valkey, wait_until
from tests.conditions import as_a_replica, busy, client_of, out_of_memory
from tests.exploring import rare
from tests.integration.harness import (
    Engine,
    EngineConfig,
    Lake,
    PlainStream,
    catch_up,
    operation_time,
    run_engine,
)
from tests.integration.proxy import Cuts
from tests.integration.test_outages import inserting

Client = MongoClient[dict[str, Any]]
Sections = dict[str, dict[str, Any]]
LONG: Sections = {"lease": {"ttl": "6s"}}


class Store:
    """The state store of one test: its own server or file."""

    def __init__(self, name: str, directory: Path) -> None:
        self.path = directory / "state.db"
        self.server = Valkey(directory) if name == "redis" else None
        if self.server:
            self.server.start()
        self.url = self.server.url if self.server else f"sqlite:///{self.path}"

    def remove_shared(self, prefix: str, name: str) -> None:
        """Delete only one shared document."""
        if self.server:
            with client_of(self.server) as client:
                assert client.delete(f"{prefix}:{{{name}}}:shared") == 1
        else:
            with closing(sqlite3.connect(self.path, isolation_level=None)) as db:
                done = db.execute("DELETE FROM shared WHERE name = ?", (f"{prefix}:{name}",))
                assert done.rowcount == 1

    def close(self) -> None:
        if self.server:
            self.server.process.kill()


@pytest.fixture(params=["redis", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made = Store(request.param, tmp_path)
    yield made
    made.close()


def wait_committed(engine: Engine, more: int = 0) -> int:
    """Wait until more than this many events are committed; the number."""
    status = engine.wait_for(lambda each: each["streams"][0]["events_committed"] > more, "committed events")
    return int(status["streams"][0]["events_committed"])


def flush(client: redis.Redis, _: str) -> None:
    client.flushall()


def remove_record(client: redis.Redis, stream: str) -> None:
    client.delete(f"{stream.partition('.')[0]}:{{{stream}}}:record")


def go_back(client: redis.Redis, stream: str) -> None:
    key = f"{stream.partition('.')[0]}:{{{stream}}}:record"
    client.hincrby(key, "_epoch", -1)


@pytest.mark.parametrize(
    ("lose", "words"),
    [(flush, "has lost its record"), (remove_record, "has lost its record"), (go_back, "an older record")],
    ids=["flushed", "evicted", "restored"],
)
def test_redis_has_lost_a_record(
    stack: LocalStack,
    mongo: Client,
    server: Valkey,
    tmp_path: Path,
    unique: str,
    lose: Callable[[redis.Redis, str], None],
    words: str,
) -> None:
    """With two engines: neither starts over with what is already in the lake."""
    assert stack.mongo is not None
    state = {"state": {"url": server.url}}
    config = EngineConfig(stack, tmp_path, unique, {**LONG, **state})
    (tmp_path / "second").mkdir()
    waiting = EngineConfig(stack, tmp_path / "second", unique, {**LONG, **state})
    catch_up(config)  # there was an earlier epoch
    with Engine(config) as first, inserting(stack.mongo.uri, unique), client_of(server) as client:
        wait_committed(first)
        with Engine(waiting) as second:
            second.wait_for(lambda status: bool(status["streams"][0]["held_by"]), "the second engine to wait")
            lose(client, f"{unique}.orders")
            assert first.end() == 1
            assert second.end() == 1
    for engine in (first, second):
        assert words in engine.log()
        assert "maxmemory-policy noeviction" in engine.log()
    assert "another engine has taken this stream over" not in first.log()
    Lake(stack, unique).check_no_token_twice()


def test_a_lost_lease_alone_is_recreated(
    stack: LocalStack, mongo: Client, server: Valkey, tmp_path: Path, unique: str
) -> None:
    assert stack.mongo is not None
    config = EngineConfig(stack, tmp_path, unique, {**LONG, "state": {"url": server.url}})
    with Engine(config) as engine, inserting(stack.mongo.uri, unique), client_of(server) as client:
        committed = wait_committed(engine)
        assert client.delete(f"{unique}:{{{unique}.orders}}:lease") == 1
        engine.wait_for(lambda _: bool(client.exists(f"{unique}:{{{unique}.orders}}:lease")), "the lease")
        wait_committed(engine, committed)
        assert engine.terminate() == 0
    Lake(stack, unique).check_no_token_twice()


@pytest.mark.parametrize("when", ["running", "between runs"])
def test_only_a_schema_is_lost(
    stack: LocalStack, mongo: Client, store: Store, tmp_path: Path, unique: str, when: str
) -> None:
    """A column must not get another type than in earlier files."""
    orders = mongo[unique].orders
    config = EngineConfig(stack, tmp_path, unique, {**LONG, "state": {"url": store.url}, "schema": {"sample": 0}})
    orders.insert_one({"n": 1})
    if when == "running":
        with Engine(config) as engine:
            wait_committed(engine)
            store.remove_shared(unique, f"schema:{unique}.orders")
            orders.insert_one({"n": "text", "new": 1})
            assert engine.end() == 1
        said = engine.log()
    else:
        catch_up(config)
        store.remove_shared(unique, f"schema:{unique}.orders")
        orders.insert_one({"n": "text"})
        done = run_engine(config, "run", "--until-caught-up")
        assert done.returncode == 1
        said = done.stderr
    assert f"the state store has lost the schema of {unique}.orders" in said
    lake = Lake(stack, unique)
    assert {str(lake.table(key).schema.field("n").type) for key in lake.object_keys()} == {"int64"}


def test_a_lost_schema_is_noticed_after_its_streams_have_ended(
    stack: LocalStack, mongo: Client, store: Store, tmp_path: Path, unique: str
) -> None:
    """Only a finished backfill still knows of it: its splits are forgotten, but its plan is not."""
    mongo[unique].orders.insert_one({"n": 1})
    config = EngineConfig(stack, tmp_path, unique, {"state": {"url": store.url}, "schema": {"sample": 0}})
    assert run_engine(config, "backfill").returncode == 0
    store.remove_shared(unique, f"schema:{unique}.orders")
    mongo[unique].orders.update_one({}, {"$set": {"n": "text"}})
    done = run_engine(config, "run", "--until-caught-up")
    assert done.returncode == 1, done.stderr
    assert f"the state store has lost the schema of {unique}.orders" in done.stderr


def slow_load(stack: LocalStack, mongo: Client, store: Store, directory: Path, name: str) -> EngineConfig:
    """3,000 documents in several splits, with a backfill of several seconds."""
    mongo[name].orders.insert_many([{"text": "x" * 1000} for _ in range(3000)])
    pace = {"split_size": "256KiB", "max_documents_per_s": 1000, "readers": 1}
    return EngineConfig(stack, directory, name, {"state": {"url": store.url}, "backfill": pace})


@pytest.mark.parametrize("what", ["the plan", rare("the list"), "both"])
def test_only_a_plan_is_lost(
    stack: LocalStack, mongo: Client, store: Store, tmp_path: Path, unique: str, what: str
) -> None:
    """A new plan would load everything again."""
    config = slow_load(stack, mongo, store, tmp_path, unique)
    with Engine(config, command="backfill") as engine:
        engine.wait_for(lambda status: status["backfills"][0]["documents"] > 0, "loaded documents")
        assert engine.terminate() == 0
    if what != "the list":
        store.remove_shared(unique, f"backfill:{unique}.orders")
    if what != "the plan":
        store.remove_shared(unique, "backfills")
    done = run_engine(config, "backfill")
    assert done.returncode == 1, done.stderr
    assert "the state store has lost the" in done.stderr
    keys = [row["_cdc_key"] for row in Lake(stack, unique).rows()]
    assert len(keys) == len(set(keys)) < 3000


def test_a_plan_is_lost_while_its_splits_are_read(
    stack: LocalStack, mongo: Client, store: Store, tmp_path: Path, unique: str
) -> None:
    """Splits without a plan are not finished."""
    config = slow_load(stack, mongo, store, tmp_path, unique)
    with Engine(config, command="backfill") as engine:
        engine.wait_for(lambda status: status["backfills"][0]["documents"] > 0, "loaded documents")
        store.remove_shared(unique, f"backfill:{unique}.orders")
        assert engine.end() == 1
    assert f"the state store has lost the plan of the backfill of {unique}.orders" in engine.log()


@pytest.mark.parametrize("how", ["removed", "replaced by a backup", rare("moved with its directory")])
def test_the_sqlite_file_is_removed(
    stack: LocalStack, mongo: Client, tmp_path: Path, unique: str, how: str
) -> None:
    """The engine stops, and one that finds an older file does not start over."""
    assert stack.mongo is not None
    directory, backup = tmp_path / "state", tmp_path / "backup.db"
    directory.mkdir()
    path = directory / "state.db"
    config = EngineConfig(stack, tmp_path, unique, {**LONG, "state": {"url": f"sqlite:///{path}"}})
    start = operation_time(mongo)
    lake = Lake(stack, unique)
    with Engine(config) as engine, inserting(stack.mongo.uri, unique):
        committed = wait_committed(engine)
        back_up(path, backup)
        wait_committed(engine, committed + 200)
        if how == "removed":
            for each in directory.iterdir():
                each.unlink()
        elif how == "replaced by a backup":
            backup.rename(path)
        else:
            directory.rename(tmp_path / "elsewhere")
        assert engine.end() == 1
        assert f"state.db has been {'replaced' if how.startswith('replaced') else 'removed'}" in engine.log()
        assert path.exists() == how.startswith("replaced")
    directory.mkdir(exist_ok=True)
    for each in directory.glob("state.db-*"):
        each.unlink()  # of the replaced file
    found = lake.check_no_token_twice()
    done = run_engine(config, "run", "--until-caught-up")
    if how.startswith("replaced") and not done.returncode:  # a backup with the intents of all objects
        check_exact(mongo, lake, unique, start)
        return
    assert done.returncode == 1, done.stderr
    assert "it was lost, or is older than the lake" in done.stderr
    assert lake.check_no_token_twice() == found


@pytest.mark.parametrize("how", ["overwritten by a backup", rare("emptied")])
def test_the_sqlite_file_is_overwritten(
    stack: LocalStack, mongo: Client, tmp_path: Path, unique: str, how: str
) -> None:
    """The engine stops, or all is exact: SQLite's log may still have everything."""
    assert stack.mongo is not None
    path, backup = tmp_path / "state.db", tmp_path / "backup.db"
    config = EngineConfig(stack, tmp_path, unique, {**LONG, "state": {"url": f"sqlite:///{path}"}})
    start = operation_time(mongo)
    lake = Lake(stack, unique)
    with Engine(config) as engine, inserting(stack.mongo.uri, unique):
        committed = wait_committed(engine)
        back_up(path, backup)
        committed = wait_committed(engine, committed + 200)
        if how == "emptied":
            subprocess.run(["truncate", "--size=0", str(path)], check=True)
        else:
            subprocess.run(["cp", str(backup), str(path)], check=True)
        deadline = time.monotonic() + 20
        while engine.process.poll() is None and time.monotonic() < deadline:
            status = engine.status()
            if status and status["streams"][0]["events_committed"] > committed + 500:
                break
            time.sleep(0.1)
    lake.check_no_token_twice()
    done = run_engine(config, "run", "--until-caught-up")
    if done.returncode:
        assert done.returncode in (1, 2), done.stderr
        lake.check_no_token_twice()
        return
    check_exact(mongo, lake, unique, start)


def check_exact(mongo: Client, lake: Lake, name: str, start: Timestamp) -> None:
    """Every event since ``start`` must be in the lake once."""
    plain = PlainStream(mongo, name, start)
    time.sleep(1)
    assert lake.check_no_token_twice() == plain.stop()


def back_up(path: Path, backup: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("VACUUM INTO ?", (str(backup),))


@contextmanager
def small_disk(directory: Path) -> Iterator[Path]:
    """A file system of 400 KiB; requires root."""
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(directory)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted: {mounted.stderr.decode().strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def test_a_full_disk_under_sqlite(stack: LocalStack, mongo: Client, tmp_path: Path, unique: str) -> None:
    assert stack.mongo is not None
    with small_disk(tmp_path / "disk") as disk:
        sections: Sections = {"state": {"url": f"sqlite:///{disk}/state.db"}, "retry": {"max_attempts": 100}}
        config = EngineConfig(stack, tmp_path, unique, {**sections, "lease": {"ttl": "30s"}})
        start = operation_time(mongo)
        lake = Lake(stack, unique)
        with Engine(config) as engine, inserting(stack.mongo.uri, unique):
            wait_committed(engine)
            balloon = disk / "balloon"
            # The engine takes some of what is free meanwhile.
            with suppress(OSError), balloon.open("wb", buffering=0) as file:
                while (free := shutil.disk_usage(disk).free) > 0:
                    file.write(b"x" * free)
            engine.wait_for(lambda _: "Free space on its disk" in engine.log(), "the remedy", 120)
            time.sleep(2)
            balloon.unlink()
            committed = wait_committed(engine)
            # The log grows until a checkpoint: free everything.
            wait_committed(engine, committed + 50)
            assert engine.terminate() == 0
        catch_up(config)
        check_exact(mongo, lake, unique, start)


def test_answers_of_redis_are_lost(
    stack: LocalStack, mongo: Client, server: Valkey, tmp_path: Path, unique: str
) -> None:
    """Operations without an answer are repeated, and not mistaken for those of another engine."""
    assert stack.mongo is not None
    cuts = Cuts(server.port)
    state = {"url": f"redis://127.0.0.1:{cuts.port}/0"}
    config = EngineConfig(stack, tmp_path, unique, {**LONG, "state": state, "retry": {"max_attempts": 100}})
    start = operation_time(mongo)
    lake = Lake(stack, unique)
    with Engine(config) as engine, inserting(stack.mongo.uri, unique):
        for _ in range(20):
            committed = wait_committed(engine)
            cuts.left = 1
            wait_committed(engine, committed)
        cuts.left = 0
        assert engine.terminate() == 0
    assert cuts.kept >= 10
    assert "the state store is away" in engine.log()
    for words in ("lost the lease", "restoring them", "has lost"):
        assert words not in engine.log()
    catch_up(config)
    check_exact(mongo, lake, unique, start)
    cuts.close()


@pytest.mark.parametrize(
    ("condition", "remedy"),
    [
        (out_of_memory, "raise its maxmemory"),
        (busy, "SCRIPT KILL"),
        (as_a_replica, "must lead to the primary"),
    ],
)
@pytest.mark.parametrize("command", ["run", "backfill"])
def test_redis_refuses_at_the_start(
    stack: LocalStack,
    mongo: Client,
    server: Valkey,
    tmp_path: Path,
    unique: str,
    command: str,
    condition: Callable[[Valkey], AbstractContextManager[None]],
    remedy: str,
) -> None:
    """The engine waits for it, whatever it does first, even if only writes are refused."""
    mongo[unique].orders.insert_many([{"n": n} for n in range(100)])
    sections: Sections = {"state": {"url": server.url}, "retry": {"max_attempts": 100}}
    config = EngineConfig(stack, tmp_path, unique, sections)
    until = ("--until-caught-up",) if command == "run" else ()
    with condition(server):
        engine = Engine(config, *until, command=command)
        wait_until(lambda: remedy in engine.log() or engine.process.poll() is not None, "the remedy")
        time.sleep(1)
    with engine:
        assert engine.end() == 0, engine.log_tail()
    assert len(Lake(stack, unique).rows()) == 100
