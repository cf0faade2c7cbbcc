"""Mirrors are the collections, document by document, read through the tables' own metadata."""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from bson import CodecOptions, DatetimeMS
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient

from bench.local import LocalStack
from engine.config import load
from engine.lake.objects import Objects
from engine.sink.objects import Sink
from engine.state.opening import open_store
from engine.tables.files import NewFile
from engine.tables.formats import tables_of
from engine.tables.mirrors import Mirrors
from tests.decode import lake as inverse
from tests.exploring import EXPLORE
from tests.integration.harness import (
    Engine,
    EngineConfig,
    Lake,
    PlainStream,
    catch_up,
    kill_all,
    operation_time,
    run_engine,
)
from tests.integration.test_kill import writing
from tests.integration.test_reading import in_order, plain, schema_of
from tests.integration.test_tables import (
    CATALOGS,
    Looks,
    Read,
    directory_name,
    not_by_rest,
    only_with,
    table_of,
    write,
)

Client = MongoClient[dict[str, Any]]
KILLS = 30 if EXPLORE else 6
RAW: CodecOptions[Any] = CodecOptions(document_class=RawBSONDocument)


@pytest.fixture(params=CATALOGS)
def config(request: pytest.FixtureRequest, stack: LocalStack, tmp_path: Path, unique: str) -> EngineConfig:
    made = EngineConfig(stack, tmp_path, unique, {"source": {"collections": ["orders", "items"]}})
    made.set("table", interval="300ms", **table_of(request))
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
    return {"orders_changes": "orders_change~73", "_delta_log": "~5Fdelta_log"}.get(name, name)


def is_mirrored(mongo: Client, config: EngineConfig, *collections: str) -> None:
    for each in collections:
        rows = Read(config).table(mirror_name(each), "")
        assert documents_of(rows, config, each) == there(mongo, config, each), each


def test_a_mirror_is_its_collection(mongo: Client, config: EngineConfig) -> None:
    rng, keys = random.Random(11), {"orders": list[Any](), "items": list[Any]()}
    for _ in range(2):
        write(mongo, config.name, rng, keys, 80)
        catch_up(config)
        is_mirrored(mongo, config, "orders", "items")
    mongo[config.name].orders.drop()
    catch_up(config)
    assert Read(config).table("orders", "").num_rows == 0
    write(mongo, config.name, rng, {"orders": []}, 20)
    catch_up(config)
    is_mirrored(mongo, config, "orders", "items")


COLLECTIONS = ["orders", "items", "_delta_log", "a.b", "orders_changes", "Ü~1"]


def test_one_command_makes_mirrors_of_a_database(mongo: Client, config: EngineConfig) -> None:
    """From an empty lake; it is killed on the way, while others write."""
    only_with("delta", config)
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
    assert found(config) == (0, {})


def test_killed_at_random(stack: LocalStack, mongo: Client, config: EngineConfig, lake: Lake) -> None:
    rng, read, looks = random.Random(13), Read(config), Looks(Read(config))
    plain = PlainStream(mongo, config.name, operation_time(mongo))
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
            looks.look()
            for name in ("orders", "items"):
                with contextlib.suppress(*read.missing):
                    ids = read.table(name, "")["_cdc_id"].to_pylist()
                    assert len(ids) == len(set(ids)), "a document is in a mirror twice"
        if engine is not None:
            engine.kill_tree()
    catch_up(config)
    assert looks.look() == plain.stop() == lake.check_no_token_twice()
    assert len(looks.seen) > 500
    is_mirrored(mongo, config, "orders", "items")


def test_queries_find_each_document(mongo: Client, config: EngineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its ``_id``, by the statistics of many small files."""
    monkeypatch.setattr("engine.tables.mirror.FILE_BYTES", 4096)
    rng, keys = random.Random(16), {"orders": list[Any]()}
    texts = [
        "\U0010ffff" * 80,
        "\U0010ffff",
        "\ud7ff" * 70,
        "a" * 64,
        "a" * 65,
        "a" * 5000,
        "\0",
        "",
        "\ue000" * 70,
    ]
    mongo[config.name].orders.insert_many([{"_id": each} for each in texts])
    write(mongo, config.name, rng, keys, 120)
    config.set("mirror", enabled=False)
    catch_up(config)
    config.set("mirror", enabled=True)
    settings = load(config.path, os.environ)
    store = open_store(settings.state, settings.sink, read_only=True)
    assert not Mirrors(settings, store, tables_of(settings)).run_once().failed
    is_mirrored(mongo, config, "orders")
    ids = Read(config).table("orders", "")["_cdc_id"].to_pylist()
    assert len(ids) > 40
    everything = Read(config).table("orders", "_changes")
    for suffix, rows in (("_changes", everything), ("", Read(config).table("orders", ""))):
        expected = rows.filter(pc.field("_cdc_op") == "insert").num_rows
        assert 0 < expected < everything.num_rows
        for of_insert in Read(config).with_operation("orders", suffix, "insert"):
            assert of_insert == expected
    for id_, found in zip(ids, Read(config).with_ids("orders", ids), strict=True):
        assert [each["_cdc_id"].to_pylist() for each in found] == [[id_]] * len(found), id_


def test_dates_of_all_years(mongo: Client, config: EngineConfig) -> None:
    """Also those that Python cannot have, which the formats' libraries convert statistics to."""
    times = [0, -1, 253402300800000, -62135596800001, 9223372036854775, -9223372036854775, 2**62, -(2**62)]
    dates = [DatetimeMS(each) for each in times]
    documents = [{"d": each, "of": [{"d": each}], "in": {"d": each}, "all": dates[:6]} for each in dates]
    mongo[config.name].orders.insert_many(documents + [{"_id": each} for each in dates])
    catch_up(config)
    is_mirrored(mongo, config, "orders")


def test_what_is_gone_from_a_mirror(mongo: Client, config: EngineConfig) -> None:
    """The error says what to do, and that helps."""
    only_with("delta", config)
    not_by_rest(config)
    mongo[config.name].orders.insert_many([{"_id": n} for n in range(5)])
    catch_up(config)
    read, files = Read(config), config.stack.s3.filesystem()
    for part in ("data", "metadata") if config.sections["table"]["format"] == "iceberg" else ("data",):
        root = f"{config.stack.bucket}/{config.name}/{config.name}/orders/{part}"
        for each in files.find(root):
            files.rm_file(each)
        mongo[config.name].orders.insert_one({"part": part})
        ended = run_engine(config, "run", "--until-caught-up")
        assert ended.returncode == 1
        assert "drop the table" in ended.stderr
        read.drop("orders", "")
        catch_up(config)
        is_mirrored(mongo, config, "orders")


def test_a_schema_grows_under_readers(mongo: Client, config: EngineConfig) -> None:
    """New fields, nested ones, new types: a reader from before goes on, and a new one sees everything."""
    orders, read = mongo[config.name].orders, Read(config)
    orders.insert_many([{"_id": n, "n": n, "in": {"a": n}, "of": [{"x": n}]} for n in range(40)])
    catch_up(config)
    readers = [read.reader("orders", suffix) for suffix in ("", "_changes")]
    before = [each() for each in readers]
    grown: dict[str, Any] = {
        "n": "text now",
        "in": {"a": 1.5, "b": {"c": [1]}},
        "of": [{"x": 1, "y": "z"}],
        "more": True,
    }
    orders.insert_many([{"_id": 100 + n} | grown for n in range(5)])
    orders.update_one({"_id": 3}, {"$set": grown})
    catch_up(config)
    assert [each().equals(rows) for each, rows in zip(readers, before, strict=True)] == [True, True]
    is_mirrored(mongo, config, "orders")
    changes = read.table("orders")
    assert sum(changes["more"].to_pylist().count(each) for each in (True,)) == 6
    orders.delete_many({"_id": {"$gte": 100}})
    catch_up(config)
    is_mirrored(mongo, config, "orders")


def test_two_engines_make_one_mirror(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    """Through different streams: each has a part of a collection, and both go into one table; one of them dies."""
    only_with("iceberg", config)
    config.set("source", split={"orders": 2})
    config.set("fleet", streams=2)
    rng, keys = random.Random(15), {"orders": list[Any](), "items": list[Any]()}
    looks, plain = Looks(Read(config)), PlainStream(mongo, config.name, operation_time(mongo))
    (config.directory / "other").mkdir()
    other = EngineConfig(config.stack, config.directory / "other", config.name, {})
    other.sections = {**config.sections, "telemetry": {"listen": f"127.0.0.1:{other.port}"}}
    other.write()
    with Engine(config) as one, Engine(other) as two:
        for engine in (one, two):
            engine.wait_for(lambda status: any(each["reading"] for each in status["streams"]), "a stream")
        for _ in range(8):
            write(mongo, config.name, rng, keys, 15)
            time.sleep(0.5)
            looks.look()
        one.kill_tree()
        write(mongo, config.name, rng, keys, 15)
        assert two.terminate() == 0
    catch_up(config)
    assert looks.look() == plain.stop() == lake.check_no_token_twice()
    is_mirrored(mongo, config, "orders", "items")


def test_verify_finds_what_is_planted(mongo: Client, config: EngineConfig) -> None:
    """Of each kind of difference one; a mirror that is only behind is none."""
    only_with("delta", config)
    rng, keys = random.Random(14), {"orders": list[Any](), "items": list[Any]()}
    write(mongo, config.name, rng, keys, 40)
    catch_up(config)
    config.set("mirror", enabled=True, interval="1h")
    write(mongo, config.name, rng, keys, 10)
    with Engine(config) as engine:
        engine.wait_for(lambda status: all(each["events_committed"] for each in status["streams"]), "commits")
        engine.kill_tree()
    assert found(config) == (0, {})

    settings = load(config.path, os.environ)
    tables, objects = tables_of(settings), Objects(settings.sink)
    changes = tables.open(config.name, "items_changes", by_day=True)
    changes.coverage()
    changes.commit([], {}, changes.files()[:1])
    mirror = tables.open(config.name, "orders", by_day=False)
    mirror.coverage()
    (file,) = mirror.files()
    rows = pa.Table.from_batches(objects.batches(file, 10**6)).combine_chunks()
    other = rows.slice(2).to_pylist()
    other[0]["_cdc_rescued"] = '{"planted": 1}'
    other[1]["_cdc_id"] = '"planted"'
    with NewFile(Sink(settings.sink), settings.sink, f"{config.name}/orders/", rows.schema) as new:
        new.write(pa.Table.from_pylist(other, rows.schema).to_batches())
        changed = new.publish("", chr(0x10FFFF))
    mirror.commit([changed], {}, [file])
    code, kinds = found(config)
    assert code == 1
    assert kinds == {"table_rows": 1, "mirror_missing": 3, "mirror_extra": 1, "mirror_different": 1}


def found(config: EngineConfig) -> tuple[int, dict[str, int]]:
    done = run_engine(config, "verify", "--lake-only", "--json")
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1])["differences"]
