"""Two engines on one stream: one runs, the other stands by. One that is paused past its lease has lost it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from bench.local import LocalStack
from engine.config.tree import LAKE
from tests.exploring import rare
from tests.integration.harness import Engine, EngineConfig, Lake, PlainStream, catch_up, operation_time
from tests.integration.test_kill import COLLECTIONS, writing


def second_engine_config(config: EngineConfig) -> EngineConfig:
    """The same configuration for a second engine, with another HTTP port."""
    directory = config.directory / "second"
    directory.mkdir(exist_ok=True)
    shared = {each: config.sections[each] for each in ("source", "state")}
    return EngineConfig(config.stack, directory, config.name, shared)


@pytest.mark.parametrize("state", [rare("redis"), "lake"])
def test_an_engine_paused_past_its_lease_is_taken_over(
    stack: LocalStack, mongo: MongoClient[dict[str, Any]], tmp_path: Path, unique: str, state: str
) -> None:
    config = EngineConfig(stack, tmp_path, unique, {"source": {"collections": COLLECTIONS}})
    if state == "lake":
        config.set("state", url=LAKE)
    lake = Lake(stack, unique)
    plain = PlainStream(mongo, unique, operation_time(mongo))
    with Engine(config) as first, Engine(second_engine_config(config)) as second:
        with writing(stack, unique, seed=3):
            for engine in (first, second):
                waiting = engine.wait_for(is_shared, "its share")
            # What the other reads does not keep this one from being ready.
            code, text = second.get("/ready")
            assert code == 200
            assert len([line for line in text.splitlines() if ": standby: held by " in line]) == 1
            assert sorted(each["lag_s"] is None for each in waiting["streams"]) == [False, True]
            assert second.get("/metrics")[1].count("headrace_lag_seconds{") == 1
            # The whole engine is paused in the middle of its work, children included.
            os.killpg(first.process.pid, signal.SIGSTOP)
            second.wait_reading()
            time.sleep(3)
            os.killpg(first.process.pid, signal.SIGCONT)
            # It has lost its stream, and gets one again.
            first.wait_for(is_shared, "its share again")
            second.wait_for(is_shared, "its share again")
            lake.check_no_token_twice()
            assert "lost the lease: another engine has taken this stream over" in first.log()
        assert second.terminate() == 0
        first.wait_reading()
        assert first.terminate() == 0
    catch_up(config)
    assert lake.check_no_token_twice() == plain.stop()


def is_shared(status: dict[str, Any]) -> bool:
    """Whether it reads one stream, and leaves the other to the other."""
    states = sorted((each["state"], bool(each["held_by"])) for each in status["streams"])
    return states == [("reading", False), ("standby", True)]
