"""The version before, taken from the repository's history, writes a lake and dies; today's goes on, and back.

Both are processes on the same servers. Ids and values are drawn from all that MongoDB allows.
"""

from __future__ import annotations

import contextlib
import io
import random
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from pymongo import MongoClient
from pymongo.errors import DuplicateKeyError

from bench.local import LocalStack
from tests.exploring import rare
from tests.integration import workload
from tests.integration.harness import (
    EngineConfig,
    Lake,
    PlainStream,
    catch_up,
    kill_all,
    operation_time,
    run_engine,
)

ROOT = Path(__file__).parents[2]
BEFORE = "240886c9eaef727b1aea7d3b52873af62eb74d42"  # version 0.2.0
Client = MongoClient[dict[str, Any]]


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the engine of the version before."""
    command = ["git", "-C", str(ROOT), "archive", BEFORE, "engine"]
    archived = subprocess.run(command, capture_output=True, check=False)
    if archived.returncode:
        pytest.skip(f"the repository's history is not here: {archived.stderr.decode().strip()}")
    directory = tmp_path_factory.mktemp("before")
    with tarfile.open(fileobj=io.BytesIO(archived.stdout)) as archive:
        archive.extractall(directory, filter="data")
    return directory


def run_before(before: Path, config: EngineConfig, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the former engine to its end."""
    command = [sys.executable, "-m", "engine", *arguments, "--config", str(config.path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=before)


@pytest.mark.parametrize("store", ["redis", rare("sqlite")])
def test_the_version_before_is_gone_on_from(
    store: str, before: Path, mongo: Client, stack: LocalStack, config: EngineConfig, tmp_path: Path
) -> None:
    rng, keys = random.Random(store), list[Any]()
    if store == "sqlite":
        config.set("state", url=f"sqlite:///{tmp_path}/state.db")
    config.set("source", collections=["orders", "items"], start="earliest")
    config.set("backfill", split_size="64KiB")
    database, lake = mongo[config.name], Lake(stack, config.name)
    plain = PlainStream(mongo, config.name, operation_time(mongo))

    def write(count: int) -> None:
        for name in ("orders", "items"):
            for number in range(count):
                with contextlib.suppress(DuplicateKeyError):
                    workload.write(database[name], keys, rng, number)

    write(150)
    assert (done := run_before(before, config, "run", "--until-caught-up")).returncode == 0, done.stderr
    assert (done := run_before(before, config, "backfill", "--collections", "orders")).returncode == 0, done.stderr
    assert "read" in {each for key in lake.object_keys() for each in lake.table(key, ["_cdc_op"])[0].to_pylist()}
    write(300)
    with subprocess.Popen(
        [sys.executable, "-m", "engine", "--config", str(config.path)],
        cwd=before, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0,
    ) as former:  # fmt: skip
        known = set(lake.object_keys())
        while set(lake.object_keys()) == known:
            assert former.poll() is None
            time.sleep(0.02)
        kill_all([former.pid, *(each.pid for each in psutil.Process(former.pid).children(recursive=True))])
    write(50)
    catch_up(config)
    assert run_engine(config, "backfill", "--collections", "items").returncode == 0
    write(50)
    back = run_before(before, config, "run", "--until-caught-up")
    assert back.returncode == 0, back.stderr
    write(50)
    catch_up(config)
    landed = [token for tokens in lake.tokens().values() for token in tokens if token is not None]
    assert len(landed) == len(set(landed))
    assert set(landed) == plain.stop()
    verified = run_engine(config, "verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr
