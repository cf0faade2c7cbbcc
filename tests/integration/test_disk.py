"""A lake on a local disk: the disk is full, and killed engines leave files behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from bench.local.servers import wait_until
from engine.config import SinkConfig
from engine.sink.objects import Sink
from tests.disks import mounted, resize
from tests.integration.harness import Engine, EngineConfig, Lake

Client = MongoClient[dict[str, Any]]
LONG_RETRY = {"max_attempts": 1000, "initial_delay": "100ms", "max_delay": "500ms"}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", "1m") as made:
        yield made


def insert(mongo: Client, config: EngineConfig, count: int) -> None:
    """Insert this many kilobytes of incompressible data."""
    mongo[config.name].orders.insert_many([{"data": os.urandom(1024)} for _ in range(count)])


def hidden(root: Path) -> list[Path]:
    return list(root.rglob(".headrace_*"))


def check_landed(lake: Lake, root: Path, count: int) -> None:
    tokens = [row["_cdc_token"] for row in lake.rows_in(root)]
    assert len(tokens) == len(set(tokens)) == count


def test_a_full_disk_is_waited_for(mongo: Client, config: EngineConfig, lake: Lake, disk: Path) -> None:
    config.set("sink", url=f"file://{disk}/lake")
    config.set("retry", **LONG_RETRY)
    config.set("batch", rows=100)
    with Engine(config) as engine:
        engine.wait_reading()
        insert(mongo, config, 3000)
        wait_until(lambda: engine.log().count("Free space there") >= 5, "several attempts")
        engine.wait_for(lambda status: 0 < status["streams"][0]["events_committed"] < 3000, "the first events")
        resize(disk, "64m")
        engine.wait_for(lambda status: status["streams"][0]["events_committed"] == 3000, "all events")
        assert hidden(disk) == []
        assert engine.terminate() == 0
    check_landed(lake, disk, 3000)


def test_leftovers_of_a_killed_engine_are_cleared_at_the_next_start(
    mongo: Client, config: EngineConfig, lake: Lake, tmp_path: Path
) -> None:
    root = tmp_path / "lake"
    config.set("sink", url=f"file://{root}")
    config.set("batch", rows=1_000_000, interval="1h")
    with Engine(config) as engine:
        engine.wait_reading()
        insert(mongo, config, 100)
        wait_until(lambda: bool(hidden(root)), "an unfinished object")
        engine.kill_tree()
    left = hidden(root)
    assert left
    living = Sink(SinkConfig(url=f"file://{root}")).open("of/this/process")
    (ours,) = set(hidden(root)) - set(left)
    config.set("batch", rows=1_000_000, interval="500ms")
    with Engine(config) as engine:
        engine.wait_for(lambda status: status["streams"][0]["events_committed"] == 100, "all events")
        assert hidden(root) == [ours]
        assert engine.terminate() == 0
    living.discard()
    check_landed(lake, root, 100)
