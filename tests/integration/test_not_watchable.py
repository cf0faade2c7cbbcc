"""Views and time-series collections in source.collections are reported by name, and the others captured."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from pymongo import MongoClient

from tests.exploring import rare
from tests.integration.harness import EngineConfig, Lake, run_engine

Client = MongoClient[dict[str, Any]]


@pytest.fixture
def database(mongo: Client, config: EngineConfig) -> Any:
    made = mongo[config.name]
    made.create_collection("measured", timeseries={"timeField": "t"})
    made.create_collection("seen", viewOn="orders", pipeline=[])
    made.orders.insert_many([{"_id": n} for n in range(5)])
    made.items.insert_many([{"_id": n} for n in range(5)])
    made.measured.insert_one({"t": datetime.now(UTC)})
    config.set("source", collections=["measured", "seen", "orders", "items"])
    return made


@pytest.mark.parametrize(
    ("readers", "start"), [(8, "earliest"), (1, "snapshot"), rare(8, "snapshot"), rare(1, "earliest")]
)
def test_others_are_captured(database: Any, config: EngineConfig, lake: Lake, readers: int, start: str) -> None:
    config.set("source", max_readers=readers, start=start)
    config.set("memory", limit="2GiB")
    checked = run_engine(config, "check")
    assert checked.returncode == 2
    assert "view" in checked.stdout or "time-series" in checked.stdout
    assert "Remove it from source.collections" in checked.stdout
    done = run_engine(config, "run", "--until-caught-up")
    database.orders.insert_one({"_id": 5})
    again = run_engine(config, "run", "--until-caught-up")
    for run in (done, again):
        assert run.returncode == (1 if readers == 8 else 0), run.stderr[-4000:]
        for name in ("seen", "measured"):
            told = [
                line for line in run.stderr.splitlines() if f"{config.name}.{name}" in line and '"error"' in line
            ]
            assert any("Remove it from source.collections" in line for line in told), name
    found: dict[str, list[str]] = {"orders": [], "items": []}
    for row in lake.rows():
        if row["_cdc_collection"] in found and row["_cdc_key"]:
            found[row["_cdc_collection"]].append(row["_cdc_key"])
    assert sorted(found["orders"]) == [f'{{"_id":{n}}}' for n in range(6)]
    assert sorted(found["items"]) == [f'{{"_id":{n}}}' for n in range(5)]
