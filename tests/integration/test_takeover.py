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
from tests.integration.harness import Engine, EngineConfig, Lake, PlainStream, catch_up, operation_time
from tests.integration.test_kill import COLLECTIONS, writing


def second_engine_config(config: EngineConfig) -> EngineConfig:
    """The same configuration for a second engine, with another HTTP port."""
    directory = config.directory / "second"
    directory.mkdir(exist_ok=True)
    shared = {each: config.sections[each] for each in ("source", "state")}
    return EngineConfig(config.stack, directory, config.name, shared)


@pytest.mark.parametrize("state", ["redis", "lake"])
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
            time.sleep(0)
            first_reads = None
            while first_reads is None:
                for engine, other in ((first, second), (second, first)):
                    status = engine.status()
                    if status and status["streams"] and all(each["reading"] for each in status["streams"]):
                        first_reads, waits = engine, other
                        break
                time.sleep(0.1)
            time.sleep(2)
            waiting = waits.status()
            assert waiting is not None
            assert not any(each["reading"] for each in waiting["streams"])
            # A rolling update waits until it is ready, and it waits for the old engine to exit.
            code, text = waits.get("/ready")
            assert code == 200
            assert len([line for line in text.splitlines() if ": standby: held by " in line]) == len(COLLECTIONS)
            assert {each["lag_s"] for each in waiting["streams"]} == {None}
            assert "headrace_lag_seconds{" not in waits.get("/metrics")[1]
            assert "another engine runs this stream; waiting for its lease" in waits.log()
            # The whole engine is paused in the middle of its work, children included.
            os.killpg(first_reads.process.pid, signal.SIGSTOP)
            waits.wait_reading()
            time.sleep(3)
            os.killpg(first_reads.process.pid, signal.SIGCONT)
            time.sleep(3)
            lake.check_no_token_twice()
            status = first_reads.status()
            assert status is not None
            assert not any(each["reading"] for each in status["streams"])
            assert "lost the lease: another engine has taken this stream over" in first_reads.log()
        assert waits.terminate() == 0
        # The loser continues where the other has stopped.
        first_reads.wait_reading()
        assert first_reads.terminate() == 0
    catch_up(config)
    assert lake.check_no_token_twice() == plain.stop()
