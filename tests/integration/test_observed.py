"""What an engine says of itself: metrics, traces and the log."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from pymongo import MongoClient

from tests.configs.test_monitoring import exported
from tests.integration.harness import Engine, EngineConfig, kill_all
from tests.supervisor.test_otlp import receiver

Client = MongoClient[dict[str, Any]]


def scraped(engine: Engine) -> dict[str, float]:
    """The sums of the engine's metrics over all labels."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(engine.get("/metrics")[1]):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def wait_until(condition: Callable[[], bool], engine: Engine) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, engine.log_tail()
        time.sleep(0.05)


def lines(engine: Engine) -> list[dict[str, Any]]:
    return [json.loads(line) for line in engine.log().splitlines() if line.startswith("{")]


def said(engine: Engine, message: str) -> list[dict[str, Any]]:
    return [each for each in lines(engine) if each["message"] == message]


def check_lint(text: str) -> None:
    if (promtool := shutil.which("promtool")) is not None:
        done = subprocess.run(
            [promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_an_engine_is_observed(mongo: Client, config: EngineConfig) -> None:
    """Counted exactly, also over the deaths of its processes; traced from read to commit; and logged."""
    database = mongo[config.name]
    config.set("telemetry", otlp_traces=True, otlp_metrics=True, log_level="info")
    config.set("source", collections=["orders", "users", "later"])
    database.orders.insert_many([{"n": number} for number in range(1200)])
    database.users.insert_one({"n": 1})
    with receiver() as (address, arrived):
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": address, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        with Engine(config, environment=environment) as engine:
            engine.wait_reading()
            wait_until(lambda: scraped(engine).get("headrace_events_committed_total") == 1201, engine)
            first = scraped(engine)
            metrics = {
                name
                for name in exported()
                if not name.startswith(("headrace_backfill", "headrace_rescued", "headrace_tables"))
            }
            unseen = metrics - first.keys() - {"headrace_oplog_lost_in_seconds"}
            assert unseen == set(), "a metric that an engine does not export"
            check_lint(engine.get("/metrics")[1])
            assert first["headrace_collection_events_total"] == 1201
            assert first["headrace_segment_events_sum"] == 1201
            assert first["headrace_server_up"] == 3

            kill_all(engine.pids("reader") + engine.pids("writer"))
            wait_until(lambda: scraped(engine)["headrace_process_restarts_total"] >= 4, engine)
            engine.wait_reading()
            after = scraped(engine)
            counters = [name for name in first if name.endswith(("_total", "_count", "_sum", "_bucket"))]
            assert {name for name in counters if after[name] < first[name]} == set()

            os.kill(engine.process.pid, signal.SIGUSR1)
            wait_until(lambda: bool(said(engine, "the log level was changed")), engine)
            database.orders.insert_one({"n": -1})
            wait_until(lambda: bool(said(engine, "segment cut")), engine)
            os.kill(engine.process.pid, signal.SIGUSR2)
            wait_until(lambda: len(said(engine, "the log level was changed")) == 2, engine)

            database.users.rename("orders_before")
            database.orders.drop()
            wait_until(lambda: bool(said(engine, "a collection was dropped")), engine)
            assert engine.terminate() == 0
            (start,) = said(engine, "starting")
            assert start["config"]["source"]["collections"] == ["orders", "users", "later"]
            assert start["pid"] == engine.process.pid
            assert start["config"]["sink"]["s3"]["secret_key"] == "***"
            (dropped,) = said(engine, "a collection was dropped")
            assert dropped["collection"] == f"{config.name}.orders"
            assert dropped["stream"]
            assert dropped["epoch"] >= 1
            (renamed,) = said(engine, "a collection was renamed, and is not captured under its new name")
            assert renamed["collection"] == f"{config.name}.users"
            (missing,) = said(engine, "something that the configuration names is in doubt")
            assert "later" in missing["cause"]
            (stop,) = said(engine, "stopping at a signal")
            assert stop["signal"] == "SIGTERM"
            committed = said(engine, "committed")
            assert committed
            assert all(each["stream"] and each["seq"] and each["epoch"] for each in committed)
        requests = [arrived.get_nowait() for _ in range(arrived.qsize())]
    traces: dict[bytes, set[str]] = {}
    for request in requests:
        for span in request.resource_spans[0].scope_spans[0].spans if hasattr(request, "resource_spans") else ():
            traces.setdefault(span.trace_id, set()).add(span.name)
    whole = {"segment", "read", "decode", "encode", "upload", "intent", "publish", "commit"}
    assert len(traces) == len(committed)
    assert all(each == whole for each in traces.values())
    assert any(hasattr(request, "resource_metrics") for request in requests)
