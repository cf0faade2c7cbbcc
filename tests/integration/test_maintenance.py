"""Tables are compacted, expire and are cleaned while others read and write: nothing changes for a reader."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from pymongo import MongoClient

from bench.local import LocalStack
from engine.config import load
from engine.config.tree import Config
from engine.quantities import Duration
from engine.state.opening import open_store
from engine.tables.follower import Follower
from engine.tables.formats import tables_of
from engine.tables.maintenance import FEW, Maintenance
from engine.tables.mirrors import Mirrors
from tests.integration.harness import Engine, EngineConfig, Lake, catch_up, run_engine
from tests.integration.test_mirrors import is_mirrored
from tests.integration.test_tables import CATALOGS, Read, table_of, write

Client = MongoClient[dict[str, Any]]


@pytest.fixture(params=CATALOGS)
def config(request: pytest.FixtureRequest, stack: LocalStack, tmp_path: Path, unique: str) -> EngineConfig:
    made = EngineConfig(stack, tmp_path, unique, {"source": {"collections": ["orders"]}})
    made.set("table", interval="100ms", **table_of(request))
    made.set("mirror", enabled=True, interval="500ms")
    made.set("batch", interval="50ms")
    made.set("memory", limit="2GiB")
    return made


def settings_of(config: EngineConfig) -> Config:
    """The settings, but earlier versions are not kept."""
    settings = load(config.path, os.environ)
    return structs.replace(
        settings, maintenance=structs.replace(settings.maintenance, keep_snapshots=Duration(-2))
    )


def files_in(config: EngineConfig, name: str) -> list[str]:
    """All objects below a table's root."""
    files = config.stack.s3.filesystem()
    files.invalidate_cache()
    root = f"{config.stack.bucket}/{config.name}/{config.name}/{name}/"
    return [each.removeprefix(root) for each in files.find(root)]


def test_a_table_stays_small(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    rng, keys = random.Random(21), {"orders": list[Any]()}
    read = Read(config)
    with Engine(config) as engine:
        engine.wait_reading()
        deadline = time.monotonic() + 120
        while len(lake.object_keys()) < FEW + 4:
            assert time.monotonic() < deadline, engine.log_tail()
            write(mongo, config.name, rng, keys, 4)
            time.sleep(0.1)
        assert engine.terminate() == 0
    for _ in range(2):  # the second merge rewrites what the first has written
        write(mongo, config.name, rng, keys, 10)
        catch_up(config)
    tokens = sorted(read.tokens("orders"))
    settings = settings_of(config)
    tables = tables_of(settings)
    store = open_store(settings.state, settings.sink, read_only=True)
    before = len(read.files("orders"))
    assert before >= FEW

    done = Maintenance(settings, store, tables).run_once()
    assert not done.failed, done.failed
    changes = done.tables[f"{config.name}.orders_changes"]
    assert changes.compacted == before
    assert changes.into == 1 == len(read.files("orders"))
    assert changes.removed > 0 or config.sections["table"]["format"] == "delta"
    assert done.tables[f"{config.name}.orders"].removed > 0
    assert sorted(read.tokens("orders")) == tokens
    assert set(tokens) == lake.check_no_token_twice()
    is_mirrored(mongo, config, "orders")
    if config.sections["table"]["format"] == "iceberg":
        metadata = [each for each in files_in(config, "orders_changes") if each.startswith("metadata/")]
        assert len(metadata) < 60, metadata
    again = Maintenance(settings, store, tables).run_once()
    assert not again.failed
    assert all(not each.compacted for each in again.tables.values())

    held = [read.reader("orders", suffix) for suffix in ("", "_changes")]
    there, moment = [each() for each in held], time.time()
    write(mongo, config.name, rng, keys, 30)
    catch_up(config)
    keep = structs.replace(settings.maintenance, keep_snapshots=Duration(time.time() - moment))
    assert not Maintenance(structs.replace(settings, maintenance=keep), store, tables).run_once().failed
    assert [each() for each in held] == there  # versions that were the present one until a moment ago
    expected = read.table("orders")["_cdc_op"].to_pylist().count("insert")
    assert [*read.with_operation("orders", "_changes", "insert")] == [expected] * (
        2 if config.sections["table"]["format"] == "iceberg" else 3
    )
    assert Follower(settings, store, tables).run_once().tables.keys() <= {f"{config.name}.orders_changes"}
    is_mirrored(mongo, config, "orders")
    landed = read.tokens("orders")
    assert len(landed) == len(set(landed))
    assert set(landed) == lake.check_no_token_twice()

    read.drop("orders", "")  # a new one is merged from compacted files too
    assert not Mirrors(settings, store, tables).run_once().failed
    is_mirrored(mongo, config, "orders")
    for _ in range(4):
        write(mongo, config.name, rng, keys, 10)
        catch_up(config)
    if config.sections["table"]["format"] == "iceberg":  # what merges removed is told once
        assert read.manifests("orders") <= 2
    verified = run_engine(config, "verify", "--lake-only")
    assert verified.returncode == 0, verified.stdout + verified.stderr
