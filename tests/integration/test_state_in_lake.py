"""The state is kept in the lake: it is lost, restored or shared while engines run, and between runs."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from bench.local import LocalStack
from engine.config.tree import LAKE
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
from tests.integration.test_outages import inserting

Client = MongoClient[dict[str, Any]]
OLDER = "it was lost, or is older than the lake"
Objects = dict[str, bytes]


class State:
    """The objects of the state, read and changed behind the engine's back."""

    def __init__(self, lake: Lake, name: str) -> None:
        self._files = lake.filesystem
        self._root = f"{lake.root}/_headrace/{name}"

    def objects(self, kind: str = "") -> Objects:
        found: Objects = {}
        for path in self._files.find(f"{self._root}/{kind}"):
            with suppress(FileNotFoundError):  # removed meanwhile
                found[path] = self._files.cat_file(path)
        return found

    def remove(self, kind: str = "") -> None:
        for path in self._files.find(f"{self._root}/{kind}"):
            self._files.rm_file(path)

    def put(self, objects: Objects) -> None:
        for path, body in objects.items():
            self._files.pipe_file(path, body)


@pytest.fixture
def config(config: EngineConfig) -> EngineConfig:
    config.set("state", url=LAKE)
    config.set("lease", ttl="3s")
    return config


@pytest.fixture
def state(lake: Lake, config: EngineConfig) -> State:
    return State(lake, config.name)


def test_commands_see_it(mongo: Client, config: EngineConfig, state: State, lake: Lake) -> None:
    done = run_engine(config, "check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "/_headrace: there is no state yet" in done.stdout or "there is no state yet at" in done.stdout
    assert state.objects() == {}
    assert lake.object_keys() == []
    done = run_engine(config, "status")
    assert (done.returncode, "there is no state yet at" in done.stderr) == (1, True), done.stderr
    mongo[config.name].orders.insert_one({"n": 1})
    catch_up(config)
    done = run_engine(config, "status")
    assert json.loads(done.stdout.splitlines()[0])["events"] == 1
    done = run_engine(config, "check")
    assert "/_headrace knows 1 stream(s), and can be written" in done.stdout


def records(objects: Objects) -> Objects:
    return {path: body for path, body in objects.items() if "/streams/" in path}


@pytest.mark.parametrize(
    ("sink", "lost"),
    [("s3", "everything"), rare("s3", "the record"), ("s3", "the latest writes"), ("file", "the latest writes")],
)
def test_lost_between_runs(
    mongo: Client, config: EngineConfig, lake: Lake, state: State, sink: str, lost: str, tmp_path: Path
) -> None:
    place: State | FileState = state
    if sink == "file":
        config.set("sink", url=f"file://{tmp_path}/lake")
        place = FileState(tmp_path / "lake/_headrace")
    orders = mongo[config.name].orders
    orders.insert_many([{"n": n} for n in range(300)])
    catch_up(config)
    before = place.objects()
    orders.insert_many([{"n": n} for n in range(300)])
    catch_up(config)
    match lost:
        case "everything":
            place.remove()
        case "the record":
            place.remove("streams/")
        case _:
            place.remove()
            place.put(before)
    done = run_engine(config, "run", "--until-caught-up")
    assert done.returncode == 1, done.stderr
    assert OLDER in done.stderr
    rows = lake.rows() if sink == "s3" else lake.rows_in(tmp_path)
    assert len(rows) == 600


class FileState:
    """The SQLite file in a local lake."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def objects(self) -> Objects:
        return {str(path): path.read_bytes() for path in self._directory.iterdir()}

    def remove(self, kind: str = "") -> None:
        if kind:
            with closing(sqlite3.connect(self._directory / "state.db", isolation_level=None)) as db:
                db.execute("DELETE FROM leases")
                db.execute("DELETE FROM fields")
        else:
            shutil.rmtree(self._directory)

    def put(self, objects: Objects) -> None:
        self._directory.mkdir()
        for path, body in objects.items():
            Path(path).write_bytes(body)


def go_back(state: State, earlier: Objects) -> None:
    state.put(records(earlier))


def take_record(state: State, _: Objects) -> None:
    state.remove("streams/")


def take_everything(state: State, _: Objects) -> None:
    state.remove()


def damage(state: State, _: Objects) -> None:
    state.put({path: body[:100] for path, body in records(state.objects()).items()})


@pytest.mark.parametrize(
    ("lose", "words"),
    [
        (take_record, "the state store has lost its record"),
        (take_everything, "the state store has lost its record"),
        (go_back, "an older record"),
        (damage, "in the state store is damaged"),
    ],
)
def test_lost_while_running(
    stack: LocalStack,
    mongo: Client,
    config: EngineConfig,
    lake: Lake,
    state: State,
    lose: Callable[[State, Objects], None],
    words: str,
) -> None:
    assert stack.mongo is not None
    catch_up(config)
    earlier = state.objects()
    with Engine(config) as engine, inserting(stack.mongo.uri, config.name):
        engine.wait_for(lambda status: status["streams"][0]["events_committed"] > 0, "events")
        lose(state, earlier)
        assert engine.end() == 1
    assert words in engine.log()
    lake.check_no_token_twice()


def test_what_the_engine_can_mend(
    stack: LocalStack, mongo: Client, config: EngineConfig, lake: Lake, state: State
) -> None:
    """Its own object is deleted again and again, and its last writes are taken back: nobody else has written."""
    assert stack.mongo is not None
    plain = PlainStream(mongo, config.name, operation_time(mongo))
    with Engine(config) as engine, inserting(stack.mongo.uri, config.name):
        engine.wait_for(lambda status: status["streams"][0]["events_committed"] > 0, "events")
        for _ in range(3):
            mine = state.objects("streams/")
            seen = engine.status()
            assert seen is not None
            count = seen["streams"][0]["events_committed"]
            engine.wait_for(lambda s, n=count: s["streams"][0]["events_committed"] > n + 100, "more")  # type: ignore[misc]
            state.remove("engines/")
            state.put(mine)
        engine.wait_for(lambda _: engine.log().count("restoring them") == 3, "the record to be written again")
        assert engine.terminate() == 0
    catch_up(config)
    assert lake.check_no_token_twice() == plain.stop()
