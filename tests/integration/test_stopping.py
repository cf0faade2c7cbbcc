"""SIGTERM while everything is at work: the engine ends within ``shutdown.timeout``, and each event lands once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import duckdb
import pytest
from pymongo import MongoClient

from bench.local import LocalStack
from tests.exploring import rare
from tests.integration.harness import Engine, EngineConfig, catch_up
from tests.integration.s3_proxy import Answer, S3Proxy

Client = MongoClient[dict[str, Any]]
# The default of shutdown.timeout, and the time that a service manager gives besides.
WITHIN_S = 25 + 15
BACKLOG = 25_000


@pytest.fixture
def slow(stack: LocalStack) -> Iterator[S3Proxy]:
    """S3, with a proxy in front that takes half a second for each request once it is told to."""
    proxy = S3Proxy(stack.s3.port)
    yield proxy
    proxy.shutdown()
    proxy.server_close()


@contextmanager
def writing(uri: str, database: str) -> Iterator[None]:
    """Two clients insert as fast as they can meanwhile."""
    stopped = threading.Event()

    def run() -> None:
        with MongoClient[dict[str, Any]](uri) as client:
            while not stopped.wait(0.05):
                client[database].orders.insert_many(documents(100))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for each in threads:
        each.start()
    try:
        yield
    finally:
        stopped.set()
        for each in threads:
            each.join()


def documents(count: int) -> list[dict[str, Any]]:
    return [{"n": n, "text": f"{n:06}" * 600, "tags": ["a", "b"], "nested": {"x": n}} for n in range(count)]


def landed(config: EngineConfig) -> tuple[int, int, int]:
    """Rows in the lake, and distinct tokens and ids."""
    with duckdb.connect() as database:
        database.register_filesystem(config.stack.s3.filesystem())
        files = f"read_parquet('s3://{config.stack.bucket}/{config.name}/**/*.parquet')"
        query = f"select count(*), count(distinct _cdc_token), count(distinct _id) from {files}"
        found = database.execute(query).fetchone()
    assert found is not None
    return int(found[0]), int(found[1]), int(found[2])


@pytest.mark.parametrize("request_s", [0.0, 0.5, rare(2.0)])
def test_sigterm_under_full_load(mongo: Client, config: EngineConfig, slow: S3Proxy, request_s: float) -> None:
    """Also if S3 is so slow that all slabs are taken, and the reader waits."""
    assert config.stack.mongo is not None
    config.set("batch", rows=10_000)
    config.set("memory", limit="512MiB")
    config.set("sink.s3", endpoint_url=slow.url)
    config.set("shutdown", timeout="25s")
    orders = mongo[config.name].orders
    for _ in range(BACKLOG // 5_000):
        orders.insert_many(documents(5_000))
    with writing(config.stack.mongo.uri, config.name), Engine(config) as engine:
        engine.wait_reading()
        if request_s:
            slow.rule = lambda *_: Answer(wait_s=request_s)
            engine.wait_for(
                lambda status: any("slab" in each["doing"] for each in status["processes"]),
                "the slabs to be taken",
            )
        at_stop = engine.wait_for(lambda status: status["streams"][0]["events_read"] > BACKLOG // 2, "the load")
        assert at_stop["streams"][0]["segments_in_flight"] > 0
        started = time.monotonic()
        assert engine.terminate(WITHIN_S) == 0, engine.log_tail()
        unread = orders.count_documents({}) - at_stop["streams"][0]["events_read"]
        print(f"ended after {time.monotonic() - started:.1f} s, with about {unread:,} events to read")
    slow.rule = lambda *_: Answer()
    rows, tokens, ids = landed(config)
    assert rows == tokens == ids >= at_stop["streams"][0]["events_committed"]
    catch_up(config)
    assert landed(config) == (orders.count_documents({}),) * 3
