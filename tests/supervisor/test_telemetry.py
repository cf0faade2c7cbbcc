"""/ready, /metrics and /status of a given snapshot."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from engine.commands.reference import OPERATIONS, operations_with_metrics
from engine.supervisor.metrics import Metrics
from engine.supervisor.telemetry import ProcessStatus, Status, StreamStatus, Telemetry, readiness

STREAM = StreamStatus(
    stream="shop.orders",
    database="shop",
    collections=("orders",),
    status="running",
    state="reading",
    reading=True,
    committed_token="82",
    committed_cluster_time=5 << 32,
    committed_seq=3,
    lag_s=1.5,
    events_read=7,
    events_committed=7,
    bytes_read=70,
    bytes_landed=30,
    objects=1,
    segments=1,
    segments_in_flight=0,
    dead_letters=0,
    restarts=0,
)


def status(*streams: StreamStatus, draining: bool = False) -> Status:
    process = ProcessStatus("reader-0", None, False, "", 0.0, None, 0)
    return Status("1", 0.0, 0.0, draining, None, 100, 0, 50, streams, (process,))


def like(name: str, **changes: Any) -> StreamStatus:
    return msgspec.structs.replace(STREAM, stream=name, **changes)


STANDBY = like(
    "shop.b",
    state="standby",
    status="waiting",
    reading=False,
    held_by="host/1",
    lag_s=None,
    committed_token=None,
    committed_cluster_time=None,
    committed_seq=None,
)


def test_ready_while_all_streams_are_read() -> None:
    assert readiness(status(STREAM, like("shop.b"))) == (True, ["ok"])
    assert readiness(status(like("shop.b", state="finished", reading=False))) == (True, ["ok"])


def test_a_standby_is_ready_and_says_so() -> None:
    assert readiness(status(STREAM, STANDBY)) == (True, ["ok", "shop.b: standby: held by host/1"])


@pytest.mark.parametrize(
    ("stream", "line"),
    [
        (like("shop.c", state="failed", error="read: a view.\nSee"), "shop.c: failed: read: a view. See"),
        (like("shop.c", state="stalled", problem="MongoDB is slow"), "shop.c: stalled: MongoDB is slow"),
        (like("shop.c", state="starting"), "shop.c: starting"),
    ],
)
def test_not_ready_while_a_stream_is_not_read(stream: StreamStatus, line: str) -> None:
    ready, lines = readiness(status(STANDBY, STREAM, stream))
    assert not ready
    assert lines == ["1 of 3 not read", line, "shop.b: standby: held by host/1"]


def test_not_ready_while_starting_or_shutting_down() -> None:
    assert readiness(None) == (False, ["starting"])
    assert readiness(status(STREAM, draining=True)) == (False, ["draining"])


def answer(telemetry: Telemetry, path: str) -> tuple[int, str]:
    reply = telemetry.answer(path)
    assert reply is not None
    return reply[0], reply[2].decode()


def test_health_depends_only_on_the_loop() -> None:
    telemetry = Telemetry()
    telemetry.status = status(like("shop.c", state="failed", error="a view"))
    assert answer(telemetry, "/health") == (200, "ok\n")
    assert answer(telemetry, "/ready")[0] == 503
    telemetry.turned_at -= 60
    code, text = answer(telemetry, "/health")
    assert code == 503
    assert "stuck for 60 s" in text


def test_before_the_first_snapshot() -> None:
    telemetry = Telemetry()
    assert answer(telemetry, "/status") == (503, '{"error":"starting"}')


def test_unknown_values_are_absent() -> None:
    telemetry = Telemetry()
    telemetry.registry.register(Metrics(lambda: telemetry.status))
    telemetry.status = status(STREAM, STANDBY)
    _, metrics = answer(telemetry, "/metrics")
    assert 'headrace_lag_seconds{stream="shop.orders"} 1.5' in metrics
    assert 'headrace_lag_seconds{stream="shop.b"}' not in metrics
    assert "headrace_memory_limit_bytes 100.0" in metrics
    assert "\nheadrace_memory_used_bytes " not in metrics
    assert "\nheadrace_memory_bytes{" not in metrics
    ones = [line for line in metrics.splitlines() if line.startswith("headrace_stream_state") and "1.0" in line]
    assert ones == [
        'headrace_stream_state{state="reading",stream="shop.orders"} 1.0',
        'headrace_stream_state{state="standby",stream="shop.b"} 1.0',
    ]
    shown = json.loads(answer(telemetry, "/status")[1])
    standby = shown["streams"][1]
    unknown = ("lag_s", "committed_token", "committed_cluster_time", "committed_seq")
    assert [standby[name] for name in unknown] == [None] * 4
    assert shown["memory_bytes"] is None
    assert shown["processes"][0]["pid"] is None


def test_the_table_of_metrics_is_up_to_date() -> None:
    document = OPERATIONS.read_text()
    assert operations_with_metrics(document) == document, "run python -m engine.commands.reference"
