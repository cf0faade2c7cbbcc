"""Streams are split, shared, replaced by one of the database, and back, with kills in between."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pymongo import MongoClient

from bench.local import LocalStack
from tests.exploring import EXPLORE, explored
from tests.integration import workload
from tests.integration.harness import Engine, EngineConfig, Lake, PlainStream, catch_up, operation_time

COLLECTIONS = ["a", "b", "c", "d"]
SHAPES: list[dict[str, Any]] = [
    {"split": {"a": 2}, "max_readers": 8},
    {"split": {"a": 3}, "max_readers": 8},
    {"split": {}, "max_readers": 2},
    {"split": {"b": 2}, "max_readers": 3},
    {"watch": "database", "collections": [], "split": {}, "max_readers": 8},
    {"watch": "collections", "collections": COLLECTIONS, "split": {}, "max_readers": 1},
    {"collections": ["a", "?"]},
    {"collections": COLLECTIONS, "max_readers": 8},
]


def test_every_shape_hands_over_to_the_next(
    stack: LocalStack, mongo: MongoClient[dict[str, Any]], tmp_path: Path, unique: str
) -> None:
    assert stack.mongo is not None
    rng = random.Random(4)
    source = {"collections": COLLECTIONS, "max_readers": 8}
    config = EngineConfig(stack, tmp_path, unique, {"source": source, "memory": {"limit": "2GiB"}})
    lake = Lake(stack, unique)
    plain = PlainStream(mongo, unique, operation_time(mongo))
    arguments = [sys.executable, workload.__file__, stack.mongo.uri, unique, "4", *COLLECTIONS]
    writes = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        catch_up(config)
        for shape in SHAPES:
            config.set("source", **shape)
            for _ in range(2 if EXPLORE else 1):
                with Engine(config) as engine:
                    time.sleep(0.5 + rng.random() * 2.5)
                    engine.kill_tree()
                lake.check_no_token_twice()
            catch_up(config)
    finally:
        writes.communicate()
    catch_up(config)
    assert lake.check_no_token_twice() == plain.stop()
    streams = {key.rpartition("/")[2].rpartition("-")[0] for key in lake.object_keys()}
    assert {
        f"{unique}.a",
        f"{unique}.a~1of2",
        f"{unique}.a~2of3",
        f"{unique}",
    } <= streams
    # Four collections on two readers, on one, and what is left for two beside a split collection.
    assert len({name for name in streams if name.startswith(f"{unique}~")}) >= 3, streams


@explored("five engines, whose parts are tested by themselves")
def test_a_collection_that_was_left_out_meanwhile_starts_over(
    mongo: MongoClient[dict[str, Any]], config: EngineConfig, lake: Lake
) -> None:
    """Its stream was handed over to a shared one, and that one to streams without it."""
    rounds = ((["a", "b"], 2), (["?"], 2), (["a"], 1), (["a", "b"], 2))
    config.set("source", start="now", max_readers=2)
    for number, (collections, wanted) in enumerate(rounds):
        config.set("source", collections=collections)
        with Engine(config) as engine:
            engine.wait_reading()
            for name in ("a", "b"):
                mongo[config.name][name].insert_one({"n": number})

            def is_landed(status: dict[str, Any]) -> bool:
                return bool(sum(each["events_committed"] for each in status["streams"]) >= wanted)  # noqa: B023

            engine.wait_for(is_landed, "the inserts")
            assert engine.terminate() == 0
    landed = sorted((row["_cdc_collection"], row["n"]) for row in lake.rows())
    assert landed == [("a", 0), ("a", 1), ("a", 2), ("a", 3), ("b", 0), ("b", 1), ("b", 3)]
    lake.check_no_token_twice()
