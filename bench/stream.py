"""End to end on a change stream, beside the server's limit and the plain driver.

- ``drain``: the same stream read as raw replies and thrown away. No client can be faster.
- ``watch``: a bare ``for event in collection.watch()`` loop.
- ``engine``: ``python -m engine --until-caught-up``, to Parquet on S3, its start and end included.

All three read the same events from the same time on, one after the other, several rounds.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import duckdb
from msgspec import Struct
from pymongo import MongoClient

from bench.measure import Cost, python, run
from bench.workloads import insert
from engine.local import LocalStack

DATABASE, COLLECTION = "bench", "events"


class StreamResult(Struct):
    """Medians over the rounds; rates per second, CPU in microseconds per event, sizes in bytes."""

    workload: str
    events: int
    rounds: int
    drain_per_s: float
    watch_per_s: float
    engine_per_s: float
    engine_reading_per_s: float
    engine_of_drain: float
    engine_reading_of_drain: float
    drain_cpu_us: float
    watch_cpu_us: float
    engine_cpu_us: float
    pss_peak: int
    memory_limit: int
    bytes_per_event: float
    objects: int
    exact: bool


def measure_stream(
    stack: LocalStack, *, workload: str, events: int, rounds: int, memory_limit: str, tell: Callable[[str], None]
) -> StreamResult:
    """Insert once, then read in rounds."""
    assert stack.mongo is not None
    uri = stack.mongo.uri
    with MongoClient[dict[str, Any]](uri) as client:
        stamp = client.admin.command("hello")["operationTime"]
        start = f"{stamp.time},{stamp.inc}"
        tell(f"inserting {events:,} {workload} documents")
        insert(client[DATABASE][COLLECTION], workload, events)
    costs: dict[str, list[Cost]] = {"drain": [], "watch": [], "engine": []}
    reading: list[float] = []
    for number in range(rounds):
        for name in ("drain", "watch"):
            costs[name].append(run(python("-m", "bench.baselines", name, uri, start, str(events))))
            tell(f"round {number + 1}: {name:6} {events / costs[name][-1].seconds:9,.0f}/s")
        with tempfile.TemporaryDirectory() as directory:
            log = Path(directory) / "engine.log"
            config = _config(stack, uri, Path(directory), number, memory_limit)
            arguments = python("-m", "engine", "--config", str(config), "--until-caught-up")
            costs["engine"].append(run(arguments, log=str(log)))
            reading.append(_reading_seconds(log))
        tell(f"round {number + 1}: engine {events / costs['engine'][-1].seconds:9,.0f}/s")
    landed = [_landed(stack, number) for number in range(rounds)]
    seconds = {name: median(cost.seconds for cost in each) for name, each in costs.items()}
    cpu = {name: median(cost.cpu_s for cost in each) / events * 1e6 for name, each in costs.items()}
    return StreamResult(
        workload=workload,
        events=events,
        rounds=rounds,
        drain_per_s=events / seconds["drain"],
        watch_per_s=events / seconds["watch"],
        engine_per_s=events / seconds["engine"],
        engine_reading_per_s=events / median(reading),
        engine_of_drain=seconds["drain"] / seconds["engine"],
        engine_reading_of_drain=seconds["drain"] / median(reading),
        drain_cpu_us=cpu["drain"],
        watch_cpu_us=cpu["watch"],
        engine_cpu_us=cpu["engine"],
        pss_peak=max(cost.pss_peak for cost in costs["engine"]),
        memory_limit=_bytes(memory_limit),
        bytes_per_event=landed[-1][3] / events,
        objects=landed[-1][2],
        exact=all(each[0] == each[1] == events for each in landed),
    )


def _config(stack: LocalStack, uri: str, directory: Path, number: int, memory_limit: str) -> Path:
    path = directory / "engine.toml"
    s3 = stack.s3
    path.write_text(f"""\
[source]
uri = {json.dumps(uri)}
database = "{DATABASE}"
collections = ["{COLLECTION}"]
start = "earliest"
[sink]
url = "s3://{stack.bucket}/round{number}"
[sink.s3]
endpoint_url = "{s3.endpoint_url}"
access_key = "{s3.access_key}"
secret_key = "{s3.secret_key}"
region = "us-east-1"
[state]
url = "{stack.valkey.url}"
prefix = "round{number}"
[memory]
limit = "{memory_limit}"
[telemetry]
listen = ""
log_format = "json"
""")
    return path


def _reading_seconds(log: Path) -> float:
    """From the assignment of the stream to its last commit, by the engine's log."""
    from datetime import datetime

    times = {}
    for line in log.read_text().splitlines():
        entry = json.loads(line)
        if entry["message"] in ("stream assigned", "stream finished"):
            times[entry["message"]] = datetime.fromisoformat(entry["time"])
    return (times["stream finished"] - times["stream assigned"]).total_seconds()


def _landed(stack: LocalStack, number: int) -> tuple[int, int, int, int]:
    """Events, distinct tokens, objects and bytes of a round, read by DuckDB straight from S3."""
    filesystem = stack.s3.filesystem()
    database = duckdb.connect()
    database.register_filesystem(filesystem)
    source = f"read_parquet('s3://{stack.bucket}/round{number}/**/*.parquet', filename = true)"
    query = f"select count(*), count(distinct _cdc_token), count(distinct filename) from {source}"
    row = database.execute(query).fetchone()
    assert row is not None
    return int(row[0]), int(row[1]), int(row[2]), int(filesystem.du(f"{stack.bucket}/round{number}"))


def _bytes(text: str) -> int:
    from engine.config import Size
    from engine.config.quantities import decode_quantity

    return int(decode_quantity(Size, text))
