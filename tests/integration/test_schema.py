"""Types are settled before the first file and kept across restarts; other formats."""

from __future__ import annotations

import gzip
import json
import time
from typing import Any

import bson
import fastavro
import pytest
import zstandard
from bson.decimal128 import Decimal128
from pymongo import MongoClient

from tests.integration.harness import Engine, EngineConfig, Lake, catch_up, run_engine

Client = MongoClient[dict[str, Any]]


def test_a_sample_settles_types_before_the_first_event(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    """The first events suggest int64, the collection double."""
    orders = mongo[config.name].orders
    orders.insert_many([{"price": n + 0.5, "rare": {"a": 1}} for n in range(500)])
    catch_up(config)
    config.set("sink", url=f"s3://{config.stack.bucket}/{config.name}-again")
    config.set("state", prefix=f"{config.name}-again")
    orders.insert_many([{"price": n} for n in range(50)])
    catch_up(config)
    again = Lake(config.stack, f"{config.name}-again")
    rows = again.rows()
    assert [row["price"] for row in rows if row["_cdc_op"] == "insert"][-50:] == [float(n) for n in range(50)]
    assert all(row["_cdc_rescued"] is None for row in rows)


def test_no_sample_if_a_pipeline_removes_fields(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    config.set("source", pipeline=[{"$unset": "fullDocument.secret"}])
    mongo[config.name].orders.insert_one({"n": 1, "secret": "x"})
    catch_up(config)
    (key,) = lake.object_keys()
    assert "secret" not in lake.table(key).schema.names


def test_a_column_keeps_its_type_across_restarts(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    config.set("schema", sample=0)
    orders = mongo[config.name].orders
    types = []
    for value in (1, 2.5, "text", {"a": 1}):
        orders.insert_one({"v": value, f"new_{type(value).__name__}": value})
        catch_up(config)
        newest = sorted(lake.object_keys())[-1]
        types.append(str(lake.table(newest).schema.field("v").type))
    assert types == ["int64"] * 4
    rescued = [json.loads(row["_cdc_rescued"]) if row["_cdc_rescued"] else None for row in lake.rows()]
    assert rescued == [None, {"v": 2.5}, {"v": "text"}, {"v": {"a": 1}}]
    last = lake.rows()[-1]
    assert last["new_dict"] == {"a": 1}


def test_overrides_raw_and_drop(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    config.set(
        "schema",
        raw=True,
        overrides={"orders.total": "decimal128(38, 2)", "orders.card": "drop", "orders.blob": "json"},
    )
    document = {"total": Decimal128("12.5"), "card": "4111", "blob": {"a": [1, {"b": 2}]}}
    mongo[config.name].orders.insert_one(document)
    catch_up(config)
    (key,) = lake.object_keys()
    assert str(lake.table(key).schema.field("total").type) == "decimal128(38, 2)"
    (row,) = lake.rows()
    assert str(row["total"]) == "12.50"
    assert json.loads(row["blob"]) == document["blob"]
    assert "card" not in row
    assert row["_cdc_rescued"] is None
    event = bson.decode(row["_cdc_raw"])
    assert (event["operationType"], event["fullDocument"]) == ("insert", document)
    config.set("schema", overrides={"orders.total": "string"})
    mongo[config.name].orders.insert_one({"total": Decimal128("1")})
    done = run_engine(config, "run", "--until-caught-up")
    assert '"field":"orders.total","type":"decimal128","wanted":"string"' in done.stderr


def test_a_mismatch_stops_the_engine_if_configured(mongo: Client, config: EngineConfig) -> None:
    config.set("schema", on_mismatch="fail", sample=0)
    mongo[config.name].orders.insert_one({"v": 1})
    catch_up(config)
    mongo[config.name].orders.insert_one({"v": "x"})
    done = run_engine(config, "--until-caught-up")
    assert done.returncode == 1
    assert "field 'v' has a string that its column (int64) cannot hold exactly" in done.stderr
    assert "Set schema.on_mismatch = " in done.stderr
    config.set("schema", on_mismatch="rescue")
    catch_up(config)
    assert len(Lake(config.stack, config.name).rows()) == 2


def test_a_new_collection_is_settled_by_more_than_its_first_event(
    mongo: Client, config: EngineConfig, lake: Lake
) -> None:
    """The first reply has one event with an integer; later ones within the interval have strings."""
    config.set("schema", sample=0)
    config.set("batch", rows=10_000, interval="60s")
    orders = mongo[config.name].orders
    with Engine(config) as engine:
        engine.wait_reading()
        orders.insert_one({"v": 1})
        time.sleep(0.5)  # it arrives alone
        orders.insert_many([{"v": f"text {n}"} for n in range(999)])
        engine.wait_for(lambda status: read_in(status) == 1000, "a thousand events")
        assert engine.terminate() == 0
        log = engine.log()
    assert {str(lake.table(key).schema.field("v").type) for key in lake.object_keys()} == {"string"}
    rows = lake.rows()
    assert [row["v"] for row in rows] == [None, *(f"text {n}" for n in range(999))]
    assert [row["_cdc_rescued"] for row in rows] == ['{"v":1}', *[None] * 999]
    assert len(lake.check_no_token_twice()) == 1000
    warnings = [json.loads(line) for line in log.splitlines() if '"path":"v"' in line]
    assert [(each["level"], each["column"], each["found"], each["values"]) for each in warnings] == [
        ("warning", "string", "int32", 1)
    ]


def test_held_events_land_within_the_interval(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    """As without holding them; also those of other collections."""
    config.set("schema", sample=0)
    config.set("source", watch="database", collections=[])
    with Engine(config) as engine:
        engine.wait_reading()
        for name in ("orders", "users", "orders"):
            mongo[config.name][name].insert_one({"v": 1})
        engine.wait_for(lambda status: committed_in(status) == 3, "all events")
        assert engine.terminate() == 0
    assert len(lake.check_no_token_twice()) == 3


def test_rescued_values_are_reported(mongo: Client, config: EngineConfig) -> None:
    """Once per column in the log, and counted in the status and the metrics."""
    config.set("schema", sample=0, max_fields=3)
    orders = mongo[config.name].orders
    orders.insert_many([{"v": n, "s": {"x": 1}} for n in range(20)])
    catch_up(config)
    with Engine(config) as engine:
        engine.wait_reading()
        orders.insert_many([{"v": "text", "s": {"x": "text"}} for _ in range(30)])
        orders.insert_many([{"v": "text", "s": {"x": 1}, "further": 1} for _ in range(20)])
        engine.wait_for(lambda status: committed_in(status) == 50, "all events")
        status = engine.status() or {}
        metrics = engine.get("/metrics")[1]
        assert engine.terminate() == 0
        log = engine.log()
    assert sum(each["rescued_values"] for each in status["streams"]) == 100
    (rescued,) = status["rescued"]
    assert rescued == {
        "database": config.name,
        "collection": "orders",
        "values": 100,
        "without_column": 20,
        "columns": [
            {"path": "v", "column": "int64", "found": "string", "values": 50},
            {"path": "s.x", "column": "int64", "found": "string", "values": 30},
        ],
    }
    labels = f'collection="orders",database="{config.name}"'
    assert f"headrace_rescued_values_total{{{labels}}} 100.0" in metrics
    warned = [json.loads(line) for line in log.splitlines() if "_cdc_rescued" in line]
    assert sorted(each.get("path", "") for each in warned) == ["", "s.x", "v"]
    assert all("schema.overrides" in each["message"] for each in warned if "path" in each)


def read_in(status: dict[str, Any]) -> int:
    return sum(each["events_read"] for each in status["streams"])


def committed_in(status: dict[str, Any]) -> int:
    return sum(each["events_committed"] for each in status["streams"])


def test_names_that_differ_by_case_across_restarts(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    """A column keeps its name, whatever the order of later documents, also in a second database."""
    config.set("schema", sample=0)
    orders = mongo[config.name].orders
    for document in ({"Name": "A"}, {"name": "b", "Name": "B"}, {"name": "c"}, {"NAME": "d", "Name": "D"}):
        orders.insert_one(document)
        catch_up(config)
    rows = [{k: v for k, v in row.items() if k.lower().startswith("name") and v} for row in lake.rows()]
    assert rows == [{"Name": "A"}, {"Name": "B", "name__2": "b"}, {"name__2": "c"}, {"Name": "D", "NAME__3": "d"}]
    newest = lake.table(sorted(lake.object_keys())[-1]).schema
    assert newest.field("name__2").metadata[b"bson.name"] == b"name"
    assert all(row["_cdc_rescued"] is None for row in lake.rows())


def test_a_first_batch_with_very_many_names(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    """In a backfill and in a stream: every row has its key, and common fields have columns."""
    config.set("schema", sample=0, max_fields=100)
    orders = mongo[config.name].orders
    documents = [{f"r{n}_{k}": k for k in range(2000)} | {f"common{k}": k for k in range(10)} for n in range(3)]
    orders.insert_many(documents)
    done = run_engine(config, "backfill")
    assert done.returncode == 0, done.stderr[-4000:]
    orders.insert_many([{f"s{n}_{k}": k for k in range(2000)} | {"common1": 1} for n in range(3)])
    catch_up(config)
    rows = lake.rows()
    assert len(rows) >= 6
    for row in rows:
        assert json.loads(row["_cdc_key"]) == {"_id": {"$oid": row["_id"]}}
        assert row["common1"] == 1
    assert {f"common{k}" for k in range(10)} <= set(rows[0])


def test_sparse_documents_fit_in_memory(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    """A thousand columns with three values per row take much more memory than their BSON."""
    config.set("memory", limit="512MiB")
    config.set("batch", rows=200_000)
    orders = mongo[config.name].orders
    documents = [{f"f{(n * 3 + k) % 1000}": float(n) for k in range(3)} for n in range(40_000)]
    orders.insert_many(documents, ordered=False)
    catch_up(config)
    assert len(lake.check_no_token_twice()) == 40_000


@pytest.mark.parametrize(
    ("format_", "compression", "suffix"),
    [
        ("json", "gzip", ".jsonl.gz"),
        ("csv", "none", ".csv"),
        ("avro", "zstd", ".avro"),
        ("bson", "zstd", ".bson.zst"),
    ],
)
def test_other_formats(
    mongo: Client, config: EngineConfig, lake: Lake, format_: str, compression: str, suffix: str
) -> None:
    config.set("sink", format=format_, compression=compression)
    mongo[config.name].orders.insert_many([{"n": n, "nested": {"a": [n]}} for n in range(1200)])
    catch_up(config)
    keys = lake.object_keys()
    assert len(keys) == 3
    assert all(key.endswith(suffix) for key in keys)
    filesystem = config.stack.s3.filesystem()
    found = []
    for key in sorted(keys):
        data = filesystem.cat_file(f"{config.stack.bucket}/{config.name}/{key}")
        match format_:
            case "json":
                found += [json.loads(line)["n"] for line in gzip.decompress(data).splitlines()]
            case "csv":
                header, *lines = data.decode().splitlines()
                place = header.split(",").index('"n"')
                found += [int(line.split(",")[place]) for line in lines if line]
            case "avro":
                path = config.directory / "x.avro"
                path.write_bytes(data)
                with path.open("rb") as file:
                    found += [row["n"] for row in fastavro.reader(file)]  # type: ignore[call-overload, index]
            case "bson":
                plain = zstandard.ZstdDecompressor().decompressobj().decompress(data)
                found += [event["fullDocument"]["n"] for event in bson.decode_all(plain)]
    assert found == list(range(1200))
