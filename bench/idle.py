"""An engine that has nothing to do: what it costs to wait for events of many collections.

The engine runs as users start it, with its default settings, on collections without any changes. Requests are
counted by the servers themselves, CPU by the operating system.
"""

from __future__ import annotations

import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import redis
from msgspec import Struct
from prometheus_client.parser import text_string_to_metric_families
from pymongo import MongoClient

from bench.local import LocalStack
from bench.measure import cpu_s, size_of, tree_of
from bench.soak import Engine
from bench.stream import Case, config_toml

_SETTLE_S = 45.0
# Dollars per request of S3 in us-east-1, by the class of the request.
_PRICES = {"PUT": 5e-6, "LIST": 5e-6, "GET": 4e-7}
_MINUTES_PER_MONTH = 30.4 * 24 * 60


class IdleResult(Struct):
    """What an idle engine takes.

    Attributes:
        state: where it keeps its state.
        cpu_percent: of one core, all processes together.
        mongod_percent: of one core, of the server.
        mongodb, puts, gets, redis: requests per minute; lists are among the puts, as they have their price.
        dollars_per_month: of the requests to S3.
    """

    collections: int
    state: str
    seconds: float
    cpu_percent: float
    mongod_percent: float
    pss: int
    mongodb: float
    puts: float
    gets: float
    redis: float
    dollars_per_month: float


def measure(stack: LocalStack, count: int, seconds: float, tell: Callable[[str], None]) -> Iterator[IdleResult]:
    """Measure one engine with its state in the lake, and one with its state in Redis, on ``count`` collections."""
    assert stack.mongo
    database = f"idle_{uuid4().hex[:8]}"
    with MongoClient[dict[str, Any]](stack.mongo.uri) as client:
        tell(f"making {count:,} collections")
        for number in range(count):
            client[database].create_collection(f"events{number}")
        for state in ("lake", "redis"):
            toml = config_toml(
                stack, stack.mongo.uri, database, Case(collections=count, memory="1GiB"), uuid4().hex
            )
            if state == "lake":
                toml = toml.replace(f'url = "{stack.valkey.url}"', 'url = "lake"')
            with tempfile.TemporaryDirectory() as directory, Engine(Path(directory), toml) as engine:
                engine.wait_for(lambda streams: bool(streams) and all(each["reading"] for each in streams))
                tell(f"{count:,} collections, state in {state}: idle")
                time.sleep(_SETTLE_S)
                yield _measured(stack, client, engine, count, state, seconds)


def _measured(
    stack: LocalStack, client: MongoClient[dict[str, Any]], engine: Engine, count: int, state: str, seconds: float
) -> IdleResult:
    assert stack.mongo
    root, mongod = psutil.Process(engine.pid), psutil.Process(stack.mongo.members[0].pid)
    began = time.monotonic()
    before, cpu, served = _counts(stack, client), cpu_s(*tree_of(root)), cpu_s(mongod)
    time.sleep(seconds)
    passed = time.monotonic() - began
    after = _counts(stack, client)
    per_minute = {name: (after[name] - before.get(name, 0)) * 60 / passed for name in after}
    puts, gets = per_minute["PUT"] + per_minute["LIST"], per_minute["GET"]
    return IdleResult(
        collections=count,
        state=state,
        seconds=passed,
        cpu_percent=(cpu_s(*tree_of(root)) - cpu) / passed * 100,
        mongod_percent=(cpu_s(mongod) - served) / passed * 100,
        pss=size_of(tree_of(root))[0],
        mongodb=per_minute["mongodb"],
        puts=puts,
        gets=gets,
        redis=per_minute["redis"],
        dollars_per_month=sum(per_minute[name] * price for name, price in _PRICES.items()) * _MINUTES_PER_MONTH,
    )


def _counts(stack: LocalStack, client: MongoClient[dict[str, Any]]) -> Mapping[str, float]:
    """The requests so far, by server or class, except this one."""
    found = dict.fromkeys(_PRICES, 0.0)
    found["mongodb"] = client.admin.command("serverStatus")["network"]["numRequests"]
    with redis.Redis.from_url(stack.valkey.url) as valkey:
        found["redis"] = valkey.info("stats")["total_commands_processed"]
    with urllib.request.urlopen(f"http://127.0.0.1:{stack.s3.metrics_port}/metrics", timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    for family in families:
        for sample in family.samples:
            if sample.name == "SeaweedFS_s3_request_total":
                class_ = {"HEAD": "GET", "POST": "PUT"}.get(sample.labels["type"], sample.labels["type"])
                if class_ in found:
                    found[class_] += sample.value
    return found
