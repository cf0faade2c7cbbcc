"""Several engines share the streams of one configuration; more in ``tests.integration.fleet``, a command."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from bench.local import LocalStack
from engine.config.tree import LAKE
from tests.integration.fleet import STREAMS, Fleet, disturbed, finish, rest
from tests.integration.harness import EngineConfig, Lake, PlainStream, operation_time
from tests.integration.soak import writing

COLLECTIONS = [f"c{number}" for number in range(STREAMS)]
TTL_S = 4.0


@pytest.fixture
def config(stack: LocalStack, tmp_path: Path, unique: str) -> EngineConfig:
    made = EngineConfig(stack, tmp_path, unique, {"source": {"collections": COLLECTIONS}})
    made.set("lease", ttl=f"{TTL_S}s")
    made.set("batch", interval="2s")
    return made


def status_lines(config: EngineConfig) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "engine", "status", "--config", str(config.path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_engines_come_and_go(
    stack: LocalStack, mongo: MongoClient[dict[str, Any]], config: EngineConfig, unique: str
) -> None:
    assert stack.mongo is not None
    config.set("state", url=LAKE)
    lake, plain = Lake(stack, unique), PlainStream(mongo, unique, operation_time(mongo))
    fleet = Fleet(config)
    try:
        with writing(stack.mongo.uri, unique, 1, COLLECTIONS):
            fleet.start().wait_reading()
            fleet.start()
            fleet.start()
            fleet.wait_even()
            disturbed(fleet, random.Random(2), events=2, seconds=30, ttl_s=TTL_S)
            fleet.wait_even()
            rest(fleet, 3)
            lines = status_lines(config)
            engines = [each for each in lines if "engine" in each]
            assert sorted(len(each["streams"]) for each in engines) == [2, 2, 2]
            streams = {each["stream"]: each["held_by"] for each in lines if "held_by" in each}
            assert len(streams) == STREAMS
            for each in engines:
                assert {stream for stream, holder in streams.items() if holder == each["engine"]} == set(
                    each["streams"]
                )
            status = fleet.engines[0].status()
            assert status is not None
            assert [each["engine"] for each in status["fleet"]] == sorted(each["engine"] for each in engines)
            assert [each["is_this"] for each in status["fleet"]].count(True) == 1
            assert fleet.engines[0].get("/ready")[0] == 200
    finally:
        finish(fleet, lake, plain)


def test_a_rolling_update_to_another_selection_and_back(
    stack: LocalStack, mongo: MongoClient[dict[str, Any]], config: EngineConfig, unique: str
) -> None:
    """Two engines; the new configuration reads the collections in fewer streams, so that they are handed over."""
    assert stack.mongo is not None
    lake, plain = Lake(stack, unique), PlainStream(mongo, unique, operation_time(mongo))
    fleet = Fleet(config)
    try:
        with writing(stack.mongo.uri, unique, 2, COLLECTIONS):
            former = [fleet.start(), fleet.start()]
            fleet.wait_even()
            # Two at once: one of them hands over, the other waits.
            newer = {"collections": COLLECTIONS, "max_readers": 3}
            new = [fleet.start(source=newer), fleet.start(source=newer)]
            for each in former:
                assert each.end() == 0
                fleet.engines.remove(each)
                assert "a newer configuration has been started" in each.log()
            # A process manager starts a former engine again.
            again = fleet.start()
            fleet.engines.remove(again)
            assert again.end() == 2
            assert "its configuration has been replaced by another" in again.log()
            fleet.wait_even(streams=3)
            # Back again, although the new engines are still there.
            fleet.start(fleet={"generation": 100})
            for each in new:
                assert each.end() == 0
                fleet.engines.remove(each)
            fleet.wait_even()
    finally:
        finish(fleet, lake, plain)
