"""All legal names of collections, and several engines: no two streams share a key or a record."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import redis
from pymongo import MongoClient

from bench.local import LocalStack
from engine.failpoints import VARIABLE
from tests.integration.harness import Engine, EngineConfig, Lake, catch_up, run_engine

Client = MongoClient[dict[str, Any]]
NAMES = [
    "表" * 80,
    "__HIVE_DEFAULT_PARTITION__",
    "a~1of2",
    "a-b.c",
    "with space/slash=equals%percent",
    "x" * 200,
    "_private",
]


def test_a_stream_and_a_collection_whose_names_look_alike(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    """``a-<database>`` is split; without directories, its keys were once those of ``a`` in a shared stream."""
    split = f"a-{config.name}"
    others = [f"c{n}" for n in range(12)]
    config.set("source", collections=["a", split, *others], split={split: 2}, max_readers=4)
    config.set("sink", partition_by="none")
    config.set("memory", limit="2GiB")
    for name in ("a", split, *others):
        mongo[config.name][name].insert_many([{"n": n} for n in range(700)])
    catch_up(config)
    assert len(lake.check_no_token_twice()) == 700 * (2 + len(others))


def test_two_engines_with_different_collections_on_one_state_store(
    stack: LocalStack, mongo: Client, config: EngineConfig, lake: Lake, tmp_path: Path
) -> None:
    """More collections than readers: shared streams once had the same names, and one engine took the other's."""
    directory = tmp_path / "other"
    directory.mkdir()
    other = EngineConfig(stack, directory, config.name)
    for each, letter in ((config, "a"), (other, "b")):
        each.set("source", collections=[f"{letter}{n}" for n in range(12)], max_readers=2)
        each.set("memory", limit="2GiB")
    names = [f"{letter}{n}" for letter in "ab" for n in range(12)]
    for name in names:
        mongo[config.name][name].insert_many([{"n": n} for n in range(50)])
    catch_up(config)
    catch_up(other)
    assert len(lake.check_no_token_twice()) == 50 * len(names)
    with Engine(config) as one, Engine(other) as two:
        carried = [engine.wait_reading()["streams"] for engine in (one, two)]
        for name in names:
            mongo[config.name][name].insert_many([{"n": n} for n in range(10)])
        assert one.terminate() == 0
        assert two.terminate() == 0
    catch_up(config)
    catch_up(other)
    assert len(lake.check_no_token_twice()) == 60 * len(names)
    assert not {each["stream"] for each in carried[0]} & {each["stream"] for each in carried[1]}
    assert sorted(name for streams in carried for each in streams for name in each["collections"]) == sorted(names)


@pytest.mark.parametrize("sink", ["s3", "file"])
@pytest.mark.parametrize("partition_by", ["hour", "none"])
@pytest.mark.parametrize("max_readers", [12, 1])
def test_every_legal_name_lands(
    mongo: Client, config: EngineConfig, lake: Lake, sink: str, partition_by: str, max_readers: int
) -> None:
    """Also if all share one stream, which carries the events of the database as well."""
    config.set("source", collections=NAMES, max_readers=max_readers)
    config.set("sink", partition_by=partition_by)
    config.set("memory", limit="2GiB")
    if sink == "file":
        config.set("sink", url=f"file://{config.directory}/lake")
    for name in NAMES:
        mongo[config.name][name].insert_many([{"n": n, "name": name} for n in range(30)])
    if max_readers == 1:
        mongo.drop_database(config.name)
    catch_up(config)
    rows = lake.rows() if sink == "s3" else lake.rows_in(config.directory / "lake")
    inserted = [row for row in rows if row["_cdc_op"] == "insert"]
    assert sorted(row["_cdc_collection"] for row in inserted) == sorted(name for name in NAMES for _ in range(30))
    assert all(row["name"] == row["_cdc_collection"] for row in inserted)
    assert len({row["_cdc_token"] for row in rows}) == len(rows)
    if max_readers == 1:
        assert [row["_cdc_op"] for row in rows].count("drop") == len(NAMES)
        assert [row["_cdc_op"] for row in rows].count("dropDatabase") == 1


def formerly(key: str) -> str:
    """The key that versions before 0.2 made."""
    key = key.replace("cdc_database=", "database=").replace("cdc_collection=", "collection=")
    key = re.sub(r"cdc_date=(\d+)-(\d+)-(\d+)", r"year=\1/month=\2/day=\3", key)
    return key.replace("cdc_hour=", "hour=")


@pytest.mark.parametrize("partition_by", ["hour", "day", "collection"])
def test_a_lake_with_the_former_directories_is_continued(
    stack: LocalStack, mongo: Client, config: EngineConfig, lake: Lake, partition_by: str
) -> None:
    """An earlier version died between publish and commit: its segment is replayed to the same keys."""
    config.set("sink", partition_by=partition_by)
    orders = mongo[config.name].orders
    orders.insert_many([{"n": n} for n in range(100)])
    catch_up(config)
    with Engine(config, environment={VARIABLE: "before_commit:1"}) as engine:
        engine.wait_reading()
        orders.insert_many([{"n": n} for n in range(100, 200)])
        assert engine.end() == -9
    # As the earlier version would have left it: the objects, and the intent in the stream's record.
    assert len(lake.check_no_token_twice()) == 200
    for key in lake.object_keys():
        lake.move(key, formerly(key))
    former = lake.object_keys()
    with redis.Redis.from_url(stack.valkey.url, decode_responses=True) as client:
        (record,) = [
            each
            for each in client.scan_iter(f"{config.name}*")
            if client.type(each) == "hash" and client.hexists(each, "spec")
        ]
        intents = {name: text for name, text in client.hgetall(record).items() if name.startswith("intent:")}
        assert intents
        client.hset(record, mapping={name: formerly(text) for name, text in intents.items()})
    catch_up(config)
    assert lake.object_keys() == former, "written again, and nowhere else"
    assert len(lake.check_no_token_twice()) == 200
    orders.insert_many([{"n": n} for n in range(200, 300)])
    catch_up(config)
    assert len(lake.check_no_token_twice()) == 300
    assert set(lake.object_keys()) > set(former)
    assert sorted(row["n"] for row in lake.rows()) == list(range(300))


def test_objects_in_the_former_directories_reveal_a_lost_state(
    stack: LocalStack, mongo: Client, config: EngineConfig, lake: Lake
) -> None:
    mongo[config.name].orders.insert_many([{"n": n} for n in range(100)])
    catch_up(config)
    for key in lake.object_keys():
        lake.move(key, formerly(key))
    before = lake.object_keys()
    with redis.Redis.from_url(stack.valkey.url) as client:
        client.delete(*client.scan_iter(f"{config.name}*"))
    done = run_engine(config, "--until-caught-up")
    assert done.returncode == 1
    assert "the lake" in done.stderr
    assert lake.object_keys() == before
