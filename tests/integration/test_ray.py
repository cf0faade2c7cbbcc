"""Backfills on a Ray cluster of two nodes: the result is that of the local pool, even if a worker is killed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from pymongo import MongoClient

from bench.local import LocalStack
from bench.local.servers import free_ports
from tests.integration.harness import Engine, EngineConfig, Lake, kill_all, run_engine
from tests.integration.test_backfill import backfill, mixed_documents, numbers

pytest.importorskip("ray")
Client = MongoClient[dict[str, Any]]
RAY = Path(sys.executable).parent / "ray"


@contextmanager
def ray_node(*arguments: str) -> Iterator[None]:
    """One node of a cluster, with one CPU."""
    command = [
        str(RAY),
        "start",
        "--block",
        "--num-cpus=1",
        "--object-store-memory=80000000",
        "--disable-usage-stats",
    ]
    process = subprocess.Popen([*command, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        family = psutil.Process(process.pid).children(recursive=True)
        kill_all([process.pid, *(each.pid for each in family)])
        process.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a cluster of two nodes."""
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    # Paths of sockets must be short; those of pytest's directories are not.
    head = ["--head", f"--port={port}", "--include-dashboard=false", "--node-ip-address=127.0.0.1"]
    with ray_node(*head):
        deadline = time.monotonic() + 60
        while subprocess.run([RAY, "status", "--address", address], capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline, "Ray did not start"
            time.sleep(0.5)
        with ray_node(f"--address={address}"):
            yield address


@pytest.fixture
def config(stack: LocalStack, tmp_path: Path, unique: str, cluster: str) -> EngineConfig:
    sections: dict[str, dict[str, Any]] = {
        "source": {"collections": ["orders"]},
        "backfill": {"split_size": "64KiB", "executor": "ray", "ray_address": cluster},
        "batch": {"rows": 700, "interval": "500ms"},
        "memory": {"limit": "512MiB"},
    }
    return EngineConfig(stack, tmp_path, unique, sections)


def test_the_same_as_the_local_pool(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    documents = mixed_documents(6000)
    mongo[config.name].orders.insert_many(documents)
    (report,) = backfill(config)
    assert report["documents"] == len(documents)
    assert report["splits"] == report["splits_total"] > 3
    there = shown(lake)
    assert numbers(lake) == Counter(range(len(documents)))
    config.set("backfill", executor="local")
    config.set("memory", limit="1GiB")
    for key in lake.object_keys():
        lake.remove(key)
    backfill(config, "--restart")
    assert shown(lake) == there


def shown(lake: Lake) -> list[str]:
    """All rows by number, without the time and the segment of reading."""
    changing = dict.fromkeys(("_cdc_cluster_time", "_cdc_timestamp", "_cdc_stream", "_cdc_seq"))
    rows = [row for row in lake.rows() if row["_cdc_op"] == "read"]
    return [repr(row | changing) for row in sorted(rows, key=lambda row: row["n"])]


def test_a_worker_killed_in_the_middle(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    documents = mixed_documents(6000)
    mongo[config.name].orders.insert_many(documents)
    config.set("backfill", max_documents_per_s=1000)
    with Engine(config, command="backfill") as engine:
        deadline = time.monotonic() + 60
        while len(lake.object_keys()) < 3:
            assert time.monotonic() < deadline, engine.log_tail()
            assert engine.process.poll() is None, engine.log_tail()
            time.sleep(0.2)
        engines = [each for each in psutil.process_iter() if "engine.backfill.ray" in " ".join(command_of(each))]
        assert engines, "no task is running"
        worker = engines[0].parent()
        assert worker is not None
        worker.kill()
        engines[0].wait(10)
        assert engine.end(240) == 0, engine.log_tail()
    assert numbers(lake) == Counter(range(len(documents)))


def command_of(process: psutil.Process) -> list[str]:
    """The command line of a process; empty if it has just exited."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_errors(mongo: Client, config: EngineConfig) -> None:
    mongo[config.name].orders.insert_one({"_id": 1})
    (port,) = free_ports(1)
    config.set("backfill", ray_address=f"127.0.0.1:{port}")
    config.set("retry", max_attempts=3)
    done = run_engine(config, "backfill")
    assert done.returncode == 1
    assert done.stderr.count("the Ray cluster is away") == 2
    assert "reach the Ray cluster" in done.stderr
    assert "Traceback" not in done.stderr
    config.set("state", url=f"sqlite:///{config.directory}/state.db")
    done = run_engine(config, "backfill")
    assert done.returncode == 2
    assert "state.url is a file" in done.stderr
