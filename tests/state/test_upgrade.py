"""State written by version 0.2.0 is read value by value, and continued from, on real servers.

``records-0.2.0.json`` has two states, without the internals of the store: ``killed`` is what a backfill and a run
left behind that were both killed with outstanding intents; ``handover`` is from a run that recorded a handover and
could not carry it out. The file must not change: stores in use were written like that.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from bench.local import LocalStack
from engine.backfill.plans import Plans
from engine.commands.handover import hand_over
from engine.config import Config, Secret, load
from engine.config.streams import streams_of
from engine.config.tree import StateConfig
from engine.core.backfill import Plan, Progress, decode_index, decode_plan, left_to_read
from engine.core.handover import Handover, decode_handover
from engine.core.position import Position
from engine.core.records import StreamRecord, read_record
from engine.core.schema import CollectionSchema
from engine.core.schemas import decode_schema
from engine.core.specs import MarkSpec
from engine.state.opening import open_store
from engine.state.seam import Acquired, StateStore
from tests.integration.harness import EngineConfig, Lake, run_engine
from tests.state.records_0_2_0 import (
    BEFORE_HANDOVER,
    ENDED_AT,
    HANDOVER,
    KILLED,
    OWN,
    PLANS,
    READ,
    SCANNED_AT,
    SCHEMAS,
)

DECODERS: dict[type, Callable[[str], Any]] = {
    Plan: decode_plan,
    list: decode_index,
    CollectionSchema: decode_schema,
    Handover: decode_handover,
}
WRITTEN: dict[str, Any] = json.loads((Path(__file__).parent / "records-0.2.0.json").read_text())


@pytest.mark.parametrize(("state", "expected"), [("killed", KILLED), ("handover", BEFORE_HANDOVER)])
def test_records(state: str, expected: dict[str, StreamRecord]) -> None:
    written = WRITTEN[state]["streams"]
    assert written.keys() == expected.keys()
    for name, each in expected.items():
        assert read_record(written[name]) == each, name


@pytest.mark.parametrize("state", ["killed", "handover"])
def test_shared_documents(state: str) -> None:
    written: dict[str, tuple[int, str]] = WRITTEN[state]["shared"]
    expected: dict[str, tuple[int, Any]] = {f"backfill:{name}": (2, each) for name, each in PLANS.items()}
    expected["backfill:shop.customers"] = 1, PLANS["shop.customers"]
    expected["backfills"] = 3, ["shop.orders", "shop.items", "shop.customers"]
    expected |= {f"schema:{name}": (each.version, each) for name, each in SCHEMAS.items()}
    expected["handover"] = (3, HANDOVER) if state == "handover" else (2, "")
    assert written.keys() == expected.keys()
    for name, (version, value) in expected.items():
        text = written[name][1]
        decoded = DECODERS[type(value)](text) if text else ""
        assert (written[name][0], decoded) == (version, value), name


# --- continuing from it ------------------------------------------------------------------------------------


def put(store: StateStore, state: str) -> None:
    """Write everything to a store."""
    for stream, fields in WRITTEN[state]["streams"].items():
        found = store.acquire(stream, "host/1", 600.0)
        assert isinstance(found, Acquired)
        store.write(found.lease, fields)
        store.release(found.lease)
    for name, (version, text) in WRITTEN[state]["shared"].items():
        for number in range(1, version + 1):
            assert store.write_shared(name, number, text if number == version else "")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StateStore]:
    """An empty store, the one of ``config``."""
    made = open_store(StateConfig(url=Secret(f"sqlite:///{tmp_path}/state.db")))
    yield made
    made.close()


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """The configuration to continue with: one stream per collection."""
    path = tmp_path / "config.toml"
    path.write_text(
        '[source]\nuri = "mongodb://nowhere/"\ndatabase = "shop"\ncollections = ["customers", "items", "orders"]\n'
        f'[sink]\nurl = "s3://lake/shop"\n[state]\nurl = "sqlite:///{tmp_path}/state.db"\n'
    )
    return load(path)


def test_status_shows_it(config: Config, store: StateStore, tmp_path: Path) -> None:
    put(store, "killed")
    arguments = [sys.executable, "-m", "engine", "status", "--json", "--config", str(tmp_path / "config.toml")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    streams = {row["stream"]: row for row in rows if "stream" in row}
    backfills = {row["collection"]: row for row in rows if "collection" in row}
    assert {name: row["status"] for name, row in streams.items()} == {
        "shop.customers": "closed",
        "shop.items": "closed",
        "shop.orders": "closed",
        "shop.orders~0of2": "stopped",
        "shop.orders~1of2": "stopped",
        "shop~1da542035d9d": "stopped",
    }
    shared = streams["shop~1da542035d9d"]
    assert shared["not_loaded"] == ["shop.items"]
    assert (shared["collections"], shared["seq"], shared["events"]) == ("customers, items", 179580737201, 2)
    assert (shared["intents"], shared["cluster_time"]) == (1, "2026-11-27T19:22:55Z")
    assert json.loads(streams["shop.items"]["position"])["_typeBits"]["$binary"]["base64"] == "gYA="
    assert {name: (row["splits"], row["splits_total"], row["documents"]) for name, row in backfills.items()} == {
        "shop.orders": (5, 5, 1020),
        "shop.items": (1, 1, 2),
        "shop.customers": (1, 5, 443),
    }


def test_the_backfills_are_resumed(store: StateStore) -> None:
    put(store, "killed")
    plans = Plans(store)
    assert plans.read_all() == [PLANS[name] for name in ("shop.orders", "shop.items", "shop.customers")]
    left = left_to_read(PLANS["shop.customers"], plans.records())
    mark = MarkSpec("shop.customers~readd32a0dcb-000004", "shop", "customers", SCANNED_AT)
    assert [each.stream for each in left] == [*(f"{READ}{number:06d}" for number in range(3)), mark.stream]
    assert left[-1] == mark
    assert plans.finish([PLANS["shop.customers"]]) == [
        Progress("shop.customers", 1, 5, 443, 1006, 443 * 399155 // 1006, 399155, None)
    ]


def test_the_handover_is_carried_out(config: Config, store: StateStore) -> None:
    put(store, "handover")
    assert hand_over(config, streams_of(config.source), lambda _: pytest.fail("nothing is left to run"))
    stands = {name: read_record(fields) for name, (fields, _) in store.read_all().items()}
    for each in OWN:
        found = stands[each.stream]
        assert (found.spec, found.position) == (each, Position(time=ENDED_AT + 1))
        assert (found.closed, found.handover) == (False, HANDOVER.id)
        assert found.seq > KILLED[each.stream].seq  # no key is used twice
    for name, former in BEFORE_HANDOVER.items():
        if name in HANDOVER.close:
            assert (stands[name].closed, stands[name].seq) == (True, former.seq)
    assert store.read_shared("handover") == (4, "")


def test_a_backfill_is_finished_on_a_real_server(
    stack: LocalStack, mongo: MongoClient[dict[str, Any]], store: StateStore, tmp_path: Path
) -> None:
    """What was committed is not read again, intents keep their keys, and the mark comes last."""
    put(store, "killed")
    ids = ["c1000", *(f"c{n}" for n in range(2000, 3000)), *(f"s{n}" for n in range(5))]
    mongo.drop_database("shop")
    mongo.shop.customers.insert_many([{"_id": each, "n": 1, "vip": True} for each in ids])
    settings: dict[str, dict[str, Any]] = {
        "source": {"collections": ["customers"]},
        "state": {"url": f"sqlite:///{tmp_path}/state.db", "prefix": "headrace"},
        "batch": {"rows": 50},
    }
    config, lake = EngineConfig(stack, tmp_path, "shop", settings), Lake(stack, "shop")
    try:
        done = run_engine(config, "backfill", "--collections", "customers")
        assert done.returncode == 0, done.stderr[-4000:]
        rows = lake.rows()
        assert sorted(row["_id"] for row in rows if row["_cdc_op"] == "read") == [
            f"c{n}" for n in range(2199, 2762)
        ]
        assert [row["_cdc_timestamp"] for row in rows if row["_cdc_op"] == "loaded"] == [SCANNED_AT]
        intended = {each.objects[0].key for number in (0, 1) for each in KILLED[f"{READ}{number:06d}"].intents}
        assert intended < set(lake.object_keys())
        (finished,) = [each for each in Plans(store).read_all() if each.collection == "customers"]
        assert (finished.finished is not None, finished.read, finished.schema) == (True, 1006, 2)
    finally:
        mongo.drop_database("shop")
        for key in lake.object_keys():
            lake.remove(key)
