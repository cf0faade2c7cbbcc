"""Mirrors are the collections, document by document, read through the tables' own metadata."""

from __future__ import annotations

import contextlib
import random
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from bson import CodecOptions
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient

from bench.local import LocalStack
from tests.decode import lake as inverse
from tests.exploring import EXPLORE
from tests.integration.harness import Engine, EngineConfig, Lake, catch_up, kill_all
from tests.integration.test_kill import writing
from tests.integration.test_reading import in_order, plain, schema_of
from tests.integration.test_tables import FORMATS, Read, directory_name, write

Client = MongoClient[dict[str, Any]]
KILLS = 30 if EXPLORE else 8
RAW: CodecOptions[Any] = CodecOptions(document_class=RawBSONDocument)


@pytest.fixture(params=FORMATS)
def config(request: pytest.FixtureRequest, stack: LocalStack, tmp_path: Path, unique: str) -> EngineConfig:
    made = EngineConfig(stack, tmp_path, unique, {"source": {"collections": ["orders", "items"]}})
    catalog = {"type": "sql", "uri": f"sqlite:///{tmp_path}/catalog.db"}
    is_iceberg = request.param == "iceberg"
    made.set("table", format=request.param, interval="300ms", **({"catalog": catalog} if is_iceberg else {}))
    made.set("mirror", enabled=True, interval="700ms")
    made.set("memory", limit="2GiB")
    return made


def documents_of(rows: pa.Table, config: EngineConfig, collection: str) -> list[str]:
    """The rows as documents."""
    ids = rows["_cdc_id"].to_pylist()
    assert len(ids) == len(set(ids)), "a document is in a mirror twice"
    assert rows["_cdc_pending"].null_count == len(rows)
    fields = schema_of(config, collection).fields
    placed = rows.append_column("_cdc_stream", pa.nulls(len(rows), pa.string()).fill_null(""))
    return sorted(in_order(inverse.document_of(row, fields)) for row in plain(placed))


def there(mongo: Client, config: EngineConfig, collection: str) -> list[str]:
    found = mongo[config.name][collection].with_options(RAW).find()
    return sorted(in_order(inverse.document_tree(bytes(each.raw))) for each in found)


def mirror_name(collection: str) -> str:
    """The name of its mirror, by the documentation."""
    name = directory_name(collection)
    return f"{name[:-1]}~73" if name.endswith("_changes") else name


def is_mirrored(mongo: Client, config: EngineConfig, *collections: str) -> None:
    for each in collections:
        rows = Read(config).table(mirror_name(each), "")
        assert documents_of(rows, config, each) == there(mongo, config, each), each


def test_a_mirror_is_its_collection(mongo: Client, config: EngineConfig) -> None:
    rng, keys = random.Random(11), {"orders": list[Any](), "items": list[Any]()}
    for _ in range(3):
        write(mongo, config.name, rng, keys, 80)
        catch_up(config)
        is_mirrored(mongo, config, "orders", "items")
    mongo[config.name].orders.drop()
    catch_up(config)
    assert Read(config).table("orders", "").num_rows == 0
    write(mongo, config.name, rng, {"orders": []}, 20)
    catch_up(config)
    is_mirrored(mongo, config, "orders", "items")


COLLECTIONS = ["orders", "items", "a.b", "orders_changes", "Ü~1"]


def test_one_command_makes_mirrors_of_a_database(mongo: Client, config: EngineConfig) -> None:
    """From an empty lake; it is killed on the way, while others write."""
    config.set("source", collections=COLLECTIONS, start="snapshot")
    config.set("backfill", split_size="64KiB", readers=1)
    rng = random.Random(12)
    keys: dict[str, list[Any]] = {name: [] for name in COLLECTIONS}
    write(mongo, config.name, rng, keys, 150)
    mongo[config.name].orders.insert_many([{"text": "x" * 500, "n": n} for n in range(600)])
    with Engine(config) as engine:
        engine.wait_for(lambda status: any(each["splits"] for each in status["backfills"]), "a split")
        write(mongo, config.name, rng, keys, 30)
        time.sleep(1)
        engine.kill_tree()
    write(mongo, config.name, rng, keys, 30)
    catch_up(config)
    is_mirrored(mongo, config, *COLLECTIONS)


def test_killed_at_random(stack: LocalStack, mongo: Client, config: EngineConfig, lake: Lake) -> None:
    rng, read = random.Random(13), Read(config)
    kills = dict.fromkeys(("committer", "writer", "supervisor", "tree"), 0)
    engine: Engine | None = None
    with writing(stack, config.name, seed=13):
        while sum(kills.values()) < KILLS or not all(kills.values()):
            engine = engine or Engine(config)
            time.sleep(rng.random() * 3)
            victim = rng.choice(list(kills))
            if victim == "tree":
                engine.kill_tree()
                engine = None
            elif victim == "supervisor":
                engine.kill_supervisor()
                engine = None
            elif pids := engine.pids(victim):
                kill_all([rng.choice(pids)])
            else:
                continue
            kills[victim] += 1
            for name in ("orders", "items"):
                with contextlib.suppress(*read.missing):
                    ids = read.table(name, "")["_cdc_id"].to_pylist()
                    assert len(ids) == len(set(ids)), "a document is in a mirror twice"
        if engine is not None:
            engine.kill_tree()
    catch_up(config)
    is_mirrored(mongo, config, "orders", "items")
