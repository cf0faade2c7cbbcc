"""The memory that an engine takes, and its errors if it gets less."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from pymongo import MongoClient

from bench.measure import PeakMemory
from engine.core.budget import MIB
from tests.exploring import rare
from tests.integration.harness import Engine, EngineConfig, Lake
from tests.integration.proxy import SlowProxy

Client = MongoClient[dict[str, Any]]


@pytest.fixture
def group(unique: str) -> Iterator[Callable[[int], Path]]:
    """Makes a control group with a memory limit below our own; skips if that is not permitted."""
    made: list[Path] = []

    def make(limit: int) -> Path:
        own = {}
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            own[controllers] = path.lstrip("/")
        if "memory" in own:
            above, name = Path("/sys/fs/cgroup/memory", own["memory"]), "memory.limit_in_bytes"
        else:
            above, name = Path("/sys/fs/cgroup", own.get("", "")), "memory.max"
        directory = above / f"headrace-{os.getpid()}-{unique}"
        try:
            directory.mkdir()
            made.append(directory)
            (directory / name).write_text(str(limit))
        except OSError as error:
            pytest.skip(f"no control group with a limit can be made here: {error}")
        return directory

    yield make
    for directory in made:
        deadline = time.monotonic() + 30
        while (directory / "cgroup.procs").read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        directory.rmdir()


@pytest.mark.parametrize("command", ["run", "backfill", "check"])
def test_a_container_with_less_than_the_limit(
    config: EngineConfig, group: Callable[[int], Path], command: str
) -> None:
    procs = group(230 * MIB) / "cgroup.procs"
    inside = f'echo $$ > {procs} && exec "$@"'
    engine = [sys.executable, "-m", "engine", command, "--config", str(config.path)]
    done = subprocess.run(["sh", "-c", inside, "sh", *engine], capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 2, said
    assert "memory.limit is 1GiB, but this container (control group) is limited to 230MiB" in said
    assert "total" in said
    assert "Give the container at least" in said


def test_a_child_killed_for_lack_of_memory_is_reported_as_such(
    mongo: Client, config: EngineConfig, lake: Lake, group: Callable[[int], Path]
) -> None:
    config.set("writers", processes=1)
    with Engine(config) as engine:
        engine.wait_for(lambda status: all(each["ready"] for each in status["processes"]), "all processes")
        (writer,) = engine.pids("writer")
        procs = group(400 * MIB) / "cgroup.procs"
        for pid in (engine.process.pid, *engine.children()):
            procs.write_text(str(pid))
        Path(f"/proc/{writer}/oom_score_adj").write_text("1000")  # it is to be killed first, and then the largest
        join = f"pathlib.Path({str(procs)!r}).write_text(str(os.getpid()))"
        hog = f"import pathlib, os; {join}; bytearray({600 * MIB})"
        subprocess.run([sys.executable, "-c", hog], check=False)
        engine.wait_for(
            lambda status: any(each["restarts"] for each in status["processes"]), "the death of the writer"
        )
        mongo[config.name].orders.insert_many([{"n": n} for n in range(100)])
        engine.wait_for(lambda status: status["streams"][0]["events_committed"] == 100, "all events")
        assert "killed by the kernel: out of memory" in engine.log()
        assert "Give the container (or the machine) more memory than memory.limit" in engine.log()
        assert engine.terminate() == 0
    assert len(lake.check_no_token_twice()) == 100


@pytest.mark.parametrize(
    "value",
    [lambda: os.urandom(16_000_000), rare(lambda: base64.b64encode(os.urandom(12_000_000)).decode())],
    ids=["binary", "text"],
)
def test_the_largest_documents_and_a_slow_store(
    mongo: Client, config: EngineConfig, lake: Lake, value: Callable[[], Any]
) -> None:
    """Incompressible documents arrive faster than they can be stored."""
    config.set("memory", limit="396MiB")
    config.set("writers", processes=1)
    with SlowProxy(config.stack.s3.port, 8e6) as proxy:
        config.set("sink.s3", endpoint_url=proxy.url)
        with Engine(config) as engine:
            engine.wait_reading()
            with PeakMemory(engine.process.pid, every_s=0.1) as memory:
                for _ in range(10):
                    mongo[config.name].orders.insert_one({"value": value()})
                engine.wait_for(lambda status: status["streams"][0]["events_committed"] == 10, "all events", 300)
            assert engine.terminate() == 0
    assert memory.peak <= 396 * MIB, f"{memory.peak / MIB:.0f} MiB"
    assert len(lake.check_no_token_twice()) == 10


def test_the_supervisor_loads_no_driver_and_no_arrays(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    """It asks other processes for what needs them, also where there is something to plan and to load."""
    mongo[config.name].orders.insert_many([{"n": n} for n in range(10)])
    config.set("source", collections=["orders"], start="snapshot")
    with Engine(config) as engine:
        engine.wait_reading()
        engine.wait_for(lambda _: len(lake.rows()) == 10, "the snapshot landed")
        supervisor, reader = (
            {Path(each.path).parts[-3:] for each in psutil.Process(pid).memory_maps()}
            for pid in (engine.process.pid, engine.pids("reader")[0])
        )
    heavy = {"bson", "numpy", "pyarrow"}
    assert {each for path in reader for each in heavy.intersection(path)} == heavy
    assert {each for path in supervisor for each in heavy.intersection(path)} == set()
