"""The memory of ``verify`` on a large collection: ``EXPLORE=1``; ``DOCUMENTS`` is how many, 5 million by default.

It takes a few minutes, most of them for making the collection and loading it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from pymongo import MongoClient

from bench.local import LocalStack
from tests.exploring import explored
from tests.integration.harness import Engine, EngineConfig, run_engine

DOCUMENTS = int(os.environ.get("DOCUMENTS", "5000000"))
LIMIT_BYTES = 512 * 2**20


@explored("takes minutes")
@pytest.mark.timeout(3600)
def test_a_large_collection_in_bounded_memory(
    stack: LocalStack, mongo: MongoClient[dict[str, Any]], unique: str, tmp_path: Path
) -> None:
    fill(mongo, unique)
    config = EngineConfig(
        stack,
        tmp_path,
        unique,
        {
            "source": {"start": "snapshot"},
            "batch": {"rows": 200_000, "interval": "30s"},
            "sink": {"url": f"file://{tmp_path}/lake"},
            "telemetry": {"log_level": "info"},
        },
    )
    began = time.monotonic()
    done = run_engine(config, "run", "--until-caught-up", timeout_s=1800)
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = time.monotonic()
    with Engine(config):  # the lake must be less than five minutes behind
        started = time.monotonic()
        code, peak, report = measured(config)
    figures = {
        "documents": DOCUMENTS,
        "load_s": round(loaded - began),
        "verify_s": round(time.monotonic() - started),
    }
    print(json.dumps(figures | {"peak_pss_mib": peak >> 20}), report)
    assert code == 0, config.path.with_suffix(".report").read_text()[-3000:]
    assert report["collections"][f"{unique}.orders"]["source"] == DOCUMENTS
    assert peak < LIMIT_BYTES


def fill(mongo: MongoClient[dict[str, Any]], name: str) -> None:
    """Documents of about 100 bytes, made by the server."""
    orders = mongo[name]["orders"]
    orders.insert_many({"n": n, "text": f"text {n}", "price": n / 8, "paid": bool(n % 3)} for n in range(1000))
    digits = [{"$range": [0, -(-DOCUMENTS // 1000)]}]
    stages: list[dict[str, Any]] = [
        {"$project": {"_id": 0, "n": 1, "text": 1, "price": 1, "paid": 1, "copy": digits[0]}},
        {"$unwind": "$copy"},
        {"$set": {"_id": {"$add": [{"$multiply": ["$copy", 1000]}, "$n"]}}},
        {"$out": "made"},
    ]
    orders.aggregate(stages, allowDiskUse=True)
    orders.drop()
    mongo[name]["made"].delete_many({"_id": {"$gte": DOCUMENTS}})
    mongo[name]["made"].rename("orders")


def measured(config: EngineConfig) -> tuple[int, int, dict[str, Any]]:
    """Exit code, the highest PSS of the process tree in bytes, and the report."""
    output = config.path.with_suffix(".report")
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "engine", "verify", "--config", str(config.path)], stdout=file
        )
        peak = 0
        while process.poll() is None:
            peak = max(peak, pss(process.pid))
            time.sleep(0.5)
    return process.returncode, peak, json.loads(output.read_text().splitlines()[-1])


def pss(pid: int) -> int:
    """The proportional set size of a process and its children, in bytes."""
    try:
        parent = psutil.Process(pid)
        return sum(int(each.memory_full_info().pss) for each in (parent, *parent.children(recursive=True)))
    except psutil.NoSuchProcess:
        return 0
