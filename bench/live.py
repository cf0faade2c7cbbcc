"""A running engine, observed from outside: how soon does it read, and how soon is a write visible in the lake?"""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Struct
from pymongo import MongoClient

from bench.local import LocalStack
from bench.local.servers import free_ports
from bench.measure import python, run
from bench.stream import Case, catching_up, config_toml, landed_in, make_events
from bench.workloads import documents
from engine.config import Size
from engine.core.budget import divide
from engine.quantities import decode_quantity

_POLL_S = 0.02
_WRITE_EVERY_S = 0.01  # due documents are sent in one command: a command for each would be the bottleneck
_IMPORTS = "import sys, pymongo, pyarrow, s3fs; pymongo.MongoClient(sys.argv[1]).admin.command('ping')"


class StartupResult(Struct):
    """Seconds from launch, medians over the rounds.

    Attributes:
        bare_s: a Python process that imports pymongo, pyarrow and s3fs, connects, and ends.
        engine_s: the engine, until it has read its first events of a backlog.
    """

    rounds: int
    bare_s: float
    engine_s: float
    ratio: float
    exact: bool


class LatencyResult(Struct):
    """Seconds from a write to the object in which it is visible, over all events; ``interval`` is the segment's.

    The time of the write is taken before it is sent; an object is visible when a listing of the bucket shows it.
    """

    events: int
    events_per_s: float
    interval: str
    p50_s: float
    p99_s: float
    worst_s: float
    exact: bool


class MemoryResult(Struct):
    """The proportional set size of the engine's processes over time, in bytes, and the budget's terms.

    Attributes:
        curve: the size at ten points of the run, from start to end.
        budget: the terms that ``memory.limit`` was divided into.
    """

    workload: str
    events: int
    limit: int
    peak: int
    curve: list[int]
    budget: dict[str, int]
    exact: bool


@contextmanager
def running(toml: str) -> Iterator[tuple[int, float]]:
    """Run an engine; yields the port of its status page, and the time of its launch."""
    with tempfile.TemporaryDirectory() as directory:
        (port,) = free_ports(1)
        path = Path(directory) / "engine.toml"
        path.write_text(toml.replace('listen = ""', f'listen = "127.0.0.1:{port}"'))
        with (Path(directory) / "engine.log").open("wb") as log:
            launched = time.perf_counter()
            process = subprocess.Popen(python("-m", "engine", "--config", str(path)), stdout=log, stderr=log)
            try:
                yield port, launched
            finally:
                process.terminate()
                process.wait()


def status(port: int) -> dict[str, Any] | None:
    """The contents of /status; None while it does not answer."""
    with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=1) as reply:
        found: dict[str, Any] = json.load(reply)
        return found
    return None


def wait_for(port: int, what: Callable[[dict[str, Any]], bool], timeout_s: float = 60.0) -> None:
    """Wait until ``what`` is true of the status page."""
    deadline = time.perf_counter() + timeout_s
    while time.perf_counter() < deadline:
        if (found := status(port)) is not None and what(found):
            return
        time.sleep(_POLL_S)
    raise TimeoutError("the engine has not reached the expected status")


def startup(stack: LocalStack, uri: str, rounds: int) -> StartupResult:
    """Launch to first event, compared with a process that only imports and connects."""
    database = uuid4().hex[:8]
    with MongoClient[dict[str, Any]](uri) as client:
        stamp = client.admin.command("hello")["operationTime"]
        client[database].events0.insert_many(list(documents("orders", 1000)))
    bare, engine = [], []
    case = Case()
    for number in range(rounds):
        started = time.perf_counter()
        subprocess.run(python("-c", _IMPORTS, uri), check=True)
        bare.append(time.perf_counter() - started)
        toml = config_toml(stack, uri, database, case, f"{database}-{number}", f"{stamp.time},0")
        with running(toml) as (port, launched):
            wait_for(port, lambda found: found["streams"][0]["events_read"] == 1000)
            engine.append(time.perf_counter() - launched)
    return StartupResult(rounds, median(bare), median(engine), median(engine) / median(bare), exact=True)


def latency(stack: LocalStack, uri: str, events: int, per_s: int = 1000, interval: str = "1s") -> LatencyResult:
    """Insert at a steady rate, and watch for objects to appear."""
    database = uuid4().hex[:8]
    prefix = f"{stack.bucket}/{database}"
    written: dict[int, float] = {}
    seen: dict[str, float] = {}
    done = threading.Event()
    filesystem = stack.s3.filesystem()

    def look() -> None:
        last = False
        while not last:
            last = done.is_set()  # look once more after everything has been committed
            filesystem.invalidate_cache()
            for key, found in filesystem.find(prefix, detail=True).items():
                if found["size"]:
                    seen.setdefault(key, time.perf_counter())
            done.wait(_POLL_S)

    with (
        MongoClient[dict[str, Any]](uri) as client,
        running(config_toml(stack, uri, database, Case(), database, interval=interval)) as (port, _),
    ):
        wait_for(port, lambda found: bool(found["streams"][0]["reading"]))
        watcher = threading.Thread(target=look)
        watcher.start()
        began = time.perf_counter()
        due = list(documents("orders", events))
        while due:
            late = int((time.perf_counter() - began) * per_s) - len(written)
            now, due = due[:late] if late > 0 else [], due[max(0, late) :]
            written |= dict.fromkeys((document["order_no"] for document in now), time.perf_counter())
            if now:
                client[database].events0.insert_many(now)
            time.sleep(_WRITE_EVERY_S)
        took = time.perf_counter() - began
        wait_for(port, lambda found: found["streams"][0]["events_committed"] == events)
        done.set()
        watcher.join()
    delays = []
    for key, at in seen.items():
        file = pq.ParquetFile(pa.BufferReader(filesystem.cat_file(key)))
        delays += [at - written[n] for n in file.read(["order_no"]).column(0).to_pylist()]
    p50, p99, worst = np.quantile(delays, [0.5, 0.99, 1.0]).tolist()
    return LatencyResult(events, events / took, interval, p50, p99, worst, exact=len(delays) == events)


def memory(stack: LocalStack, uri: str, workload: str, events: int, limit: str) -> MemoryResult:
    """The size of the process tree while it works through a backlog."""
    database = uuid4().hex[:8]
    case = Case(workload, events, 1, limit)
    start = make_events(uri, database, case, lambda _: None)
    budget = divide(int(decode_quantity(Size, limit)), 1, 2)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "engine.toml"
        path.write_text(config_toml(stack, uri, database, case, database, start))
        cost = run(catching_up(path))
    sizes = cost.sizes or [0]
    curve = [sizes[int(place)] for place in np.linspace(0, len(sizes) - 1, 10)]
    landed = landed_in(stack, database)
    exact = landed.has_each_once(events)
    return MemoryResult(workload, events, budget.limit, cost.pss_peak, curve, dict(budget.terms()), exact)
