"""Any process may be killed at any time: no token is ever in two objects, and none is missing at the end."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from pymongo import MongoClient

from bench.local import LocalStack
from bench.local.servers import wait_until
from engine.config.tree import LAKE
from engine.failpoints import POINTS, VARIABLE
from tests.exploring import EXPLORE
from tests.integration import workload
from tests.integration.harness import (
    Engine,
    EngineConfig,
    Lake,
    PlainStream,
    catch_up,
    is_alive,
    kill_all,
    operation_time,
)

KILLS = 40 if EXPLORE else 10
VICTIMS = ["tree", "supervisor", "template", "reader", "writer"]
COLLECTIONS = ["orders", "items"]
# More with EXPLORE=1: each seed with each state store.
RUNS = [(1, "redis"), (2, "lake"), *([(2, "redis"), (1, "sqlite"), (2, "sqlite")] if EXPLORE else [])]


@pytest.fixture
def config(stack: LocalStack, tmp_path: Path, unique: str) -> EngineConfig:
    return EngineConfig(stack, tmp_path, unique, {"source": {"collections": COLLECTIONS}})


@contextmanager
def writing(stack: LocalStack, database: str, seed: int) -> Iterator[None]:
    """Run the workload meanwhile."""
    assert stack.mongo is not None
    arguments = [sys.executable, workload.__file__, stack.mongo.uri, database, str(seed), *COLLECTIONS]
    process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield
    finally:
        out, _ = process.communicate()
        assert process.returncode == 0
        assert int(out) > 100


@pytest.mark.parametrize(("seed", "state"), RUNS)
def test_killed_at_random(
    stack: LocalStack, mongo: MongoClient[dict[str, Any]], config: EngineConfig, seed: int, state: str
) -> None:
    rng = random.Random(seed)
    if state == "sqlite":
        config.set("state", url=f"sqlite:///{config.directory}/state.db")
    elif state == "lake":
        config.set("state", url=LAKE)
    lake = Lake(stack, config.name)
    plain = PlainStream(mongo, config.name, operation_time(mongo))
    engine: Engine | None = None
    kills: dict[str, int] = {}
    orphans: list[int] = []
    with writing(stack, config.name, seed):
        while sum(kills.values()) < KILLS or len(kills) < len(VICTIMS):
            if engine is None:
                engine = Engine(config)
            time.sleep(rng.random() * 2.5)
            victim = rng.choice(VICTIMS)
            if victim == "tree":
                engine.kill_tree()
                engine = None
            elif victim == "supervisor":
                orphans += engine.kill_supervisor()
                engine = None
            elif pids := engine.template() if victim == "template" else engine.pids(victim):
                kill_all([rng.choice(pids)])
            else:
                continue
            kills[victim] = kills.get(victim, 0) + 1
            if rng.random() < 0.5:
                lake.check_no_token_twice()
        if engine is not None:
            engine.kill_tree()
        wait_until(lambda: len(plain.tokens) > 1000, "enough events, on a slow machine")
    catch_up(config)
    expected = plain.stop()
    assert lake.check_no_token_twice() == expected
    assert lake.keys() == plain.keys
    assert len(expected) > 1000
    assert set(kills) == set(VICTIMS)
    kill_all(orphans)


def test_without_their_template_children_are_replaced(
    stack: LocalStack, mongo: MongoClient[dict[str, Any]], config: EngineConfig
) -> None:
    """None of them remains, writing beside its successor."""
    lake = Lake(stack, config.name)
    with Engine(config) as engine:
        engine.wait_reading()
        mongo[config.name].orders.insert_many([{"n": n} for n in range(100)])
        former = engine.pids("reader") + engine.pids("writer")
        (template,) = engine.template()
        kill_all([template])
        engine.wait_for(
            lambda status: sum(each["restarts"] and each["ready"] for each in status["processes"]) == len(former),
            "new children",
        )
        assert not any(map(is_alive, former))
        assert engine.template() not in ([], [template])
        assert engine.terminate() == 0
    catch_up(config)
    assert len(lake.check_no_token_twice()) == 100


def test_a_template_that_dies_while_it_loads_is_replaced(
    stack: LocalStack, mongo: MongoClient[dict[str, Any]], config: EngineConfig
) -> None:
    with Engine(config) as engine:
        engine.wait_reading()
        killed: list[int] = []
        while len(killed) < 4:
            assert engine.process.poll() is None, engine.log_tail()
            fresh = [pid for pid in engine.template() if pid not in killed]
            kill_all(fresh)
            killed += fresh
        mongo[config.name].orders.insert_many([{"n": n} for n in range(100)])
        engine.wait_for(
            lambda status: sum(each["events_committed"] for each in status["streams"]) == 100, "all events"
        )
        assert engine.terminate() == 0
    assert len(Lake(stack, config.name).check_no_token_twice()) == 100


def test_a_stopped_template_is_replaced_and_not_waited_for(
    stack: LocalStack, mongo: MongoClient[dict[str, Any]], config: EngineConfig
) -> None:
    config.set("supervision", hang_timeout="8s")
    lake = Lake(stack, config.name)
    with Engine(config) as engine:
        engine.wait_reading()
        engine.wait_for(lambda status: bool(engine.pids("writer")), "a writer")
        mongo[config.name].orders.insert_many([{"n": n} for n in range(100)])
        (template,) = engine.template()
        children = engine.pids("reader") + engine.pids("writer")
        os.kill(template, signal.SIGSTOP)
        kill_all([engine.pids("reader")[0], engine.pids("writer")[0]])
        mongo[config.name].orders.insert_many([{"n": n} for n in range(100)])
        before = engine.wait_for(lambda status: status["at"] > 0, "an answer")
        used_s, since = cpu_s(engine.process.pid), time.monotonic()
        moments = set()
        while is_alive(template):
            assert time.monotonic() < since + 60, engine.log_tail()
            status = engine.wait_for(lambda status: status["at"] > before["at"], "the next iteration of the loop")
            moments.add(status["at"])
            time.sleep(0.1)
        assert len(moments) > 5, "the supervisor must not block"
        assert cpu_s(engine.process.pid) - used_s < (time.monotonic() - since) / 2, "the supervisor must not spin"
        engine.wait_for(
            lambda status: sum(each["events_committed"] for each in status["streams"]) == 200, "all events"
        )
        assert engine.template() not in ([], [template])
        assert not any(map(is_alive, children))
        assert engine.terminate() == 0
    assert len(lake.check_no_token_twice()) == 200


def test_other_streams_continue_while_the_template_is_stopped(
    stack: LocalStack, mongo: MongoClient[dict[str, Any]], config: EngineConfig
) -> None:
    """The reader of one stream has to be started, and cannot be."""
    config.set("supervision", hang_timeout="10s")
    lake = Lake(stack, config.name)
    with Engine(config) as engine:
        engine.wait_reading()
        engine.wait_for(lambda status: bool(engine.pids("writer")), "a writer")
        (template,) = engine.template()
        os.kill(template, signal.SIGSTOP)
        kill_all(engine.pids("reader")[:1])
        status = engine.wait_for(
            lambda status: not all(each["reading"] for each in status["streams"]), "the stream to stop"
        )
        (other,) = (each["stream"] for each in status["streams"] if each["reading"])
        for name in COLLECTIONS:
            mongo[config.name][name].insert_many([{"n": n} for n in range(100)])
        engine.wait_for(lambda status: committed(status, other) == 100, "the other stream")
        assert psutil.Process(template).status() == psutil.STATUS_STOPPED
        engine.wait_for(
            lambda status: sum(each["events_committed"] for each in status["streams"]) == 200, "all events"
        )
        assert not is_alive(template)
        assert engine.terminate() == 0
    assert len(lake.check_no_token_twice()) == 200


def committed(status: dict[str, Any], stream: str) -> int:
    """The number of committed events of a stream."""
    return int(next(each["events_committed"] for each in status["streams"] if each["stream"] == stream))


@pytest.mark.parametrize("victims", [[], ["reader", "writer"]], ids=["none", "killed"])
def test_a_stopped_template_does_not_prevent_shutdown(
    stack: LocalStack, mongo: MongoClient[dict[str, Any]], config: EngineConfig, victims: list[str]
) -> None:
    with Engine(config) as engine:
        engine.wait_reading()
        engine.wait_for(lambda status: bool(engine.pids("writer")), "a writer")
        mongo[config.name].orders.insert_many([{"n": n} for n in range(100)])
        processes = engine.children()
        for template in engine.template():
            os.kill(template, signal.SIGSTOP)
        kill_all([engine.pids(each)[0] for each in victims])
        assert engine.terminate() in (0, 1)
        deadline = time.monotonic() + 10
        while any(map(is_alive, processes)):
            assert time.monotonic() < deadline, "processes are left"
            time.sleep(0.05)
    catch_up(config)
    assert len(Lake(stack, config.name).check_no_token_twice()) == 100


def cpu_s(pid: int) -> float:
    """User and system time of one process."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_failpoint(
    stack: LocalStack, mongo: MongoClient[dict[str, Any]], config: EngineConfig, point: str
) -> None:
    """The process that reaches the failpoint dies there, at its first or third visit; the last engine has none."""
    lake = Lake(stack, config.name)
    plain = PlainStream(mongo, config.name, operation_time(mongo))
    dies_in_writer = point.split("_")[1] in ("seal", "publish", "objects", "acknowledge")
    with writing(stack, config.name, seed=2):
        for times in (1, 3) if EXPLORE else ((1, 3)[POINTS.index(point) % 2],):
            with Engine(config, environment={VARIABLE: f"{point}:{times}"}) as engine:
                if dies_in_writer:
                    engine.wait_for(
                        lambda status: sum(each["restarts"] for each in status["processes"]) > 0,
                        "a dead writer",
                    )
                    time.sleep(0.5)
                else:
                    assert engine.end() == -9
            lake.check_no_token_twice()
    catch_up(config)
    expected = plain.stop()
    assert lake.check_no_token_twice() == expected
    assert len(expected) > 100
