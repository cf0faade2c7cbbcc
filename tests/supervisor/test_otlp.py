"""Metrics and traces over OTLP, at a real receiver of HTTP and protobuf."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.utils import floatToGoString

from engine.config.tree import TelemetryConfig
from engine.core import messages as msg
from engine.core.actions import Child
from engine.errors import ConfigError
from engine.supervisor.metrics import Metrics
from engine.supervisor.otlp import Otlp
from engine.supervisor.traces import SegmentTrace
from tests.supervisor.test_metrics import batch, full_status, samples

BOTH = TelemetryConfig(otlp_metrics=True, otlp_traces=True)


@contextlib.contextmanager
def receiver(answer: Callable[[], object] = lambda: None) -> Iterator[tuple[str, queue.Queue[Any]]]:
    """A collector: its address, and the requests that have arrived."""
    arrived: queue.Queue[Any] = queue.Queue()
    kinds: dict[str, Any] = {"/v1/metrics": ExportMetricsServiceRequest, "/v1/traces": ExportTraceServiceRequest}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            arrived.put(kinds[self.path].FromString(body))
            answer()
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", arrived
    finally:
        server.shutdown()
        server.server_close()


def exported(request: ExportMetricsServiceRequest) -> dict[str, float]:
    """The values as Prometheus shows them, by series."""
    found: dict[str, float] = {}

    def add(name: str, point: Any, value: float, **more: str) -> None:
        labels = {each.key: each.value.string_value for each in point.attributes} | more
        text = ",".join(f'{key}="{labels[key]}"' for key in sorted(labels))
        found[f"{name}{{{text}}}" if text else name] = value

    for metric in request.resource_metrics[0].scope_metrics[0].metrics:
        for point in (*metric.gauge.data_points, *metric.sum.data_points):
            add(metric.name, point, point.as_double)
        for point in metric.histogram.data_points:
            add(f"{metric.name}_count", point, point.count)
            add(f"{metric.name}_sum", point, point.sum)
            cumulated = 0
            bounds = [*map(floatToGoString, point.explicit_bounds), "+Inf"]
            for bound, count in zip(bounds, point.bucket_counts, strict=True):
                cumulated += count
                add(f"{metric.name}_bucket", point, cumulated, le=bound)
    return found


def test_the_same_metrics_as_for_prometheus(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics(full_status)
    metrics.figures.heard(Child("reader", 0), batch(msg.Counted("shop", "orders", "insert", 5)))
    times = {stage: msg.Work(1.0, 2.5, 0.7) for stage in ("read", "decode", "encode", "commit")}
    metrics.figures.committed(SegmentTrace("s", 1, 2, 30, 4000, times))
    with receiver() as (address, arrived):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "team=lake")
        otlp = Otlp(TelemetryConfig(otlp_metrics=True), metrics.collect)
        otlp.close()
        request = arrived.get(timeout=30)
    assert exported(request) == samples(metrics)
    resource = {each.key: each.value.string_value for each in request.resource_metrics[0].resource.attributes}
    assert (resource["service.name"], resource["team"]) == ("headrace", "lake")
    kinds = {each.name: each for each in request.resource_metrics[0].scope_metrics[0].metrics}
    assert kinds["headrace_events_read_total"].sum.is_monotonic
    assert kinds["headrace_segment_age_seconds"].unit == "s"


def test_a_trace_of_a_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    times = {"decode": msg.Work(now - 9, now - 8, 0.5), "commit": msg.Work(now - 3, now - 2, 1.0)}
    with receiver() as (address, arrived):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        otlp = Otlp(TelemetryConfig(otlp_traces=True), lambda: ())
        otlp.segment(SegmentTrace("shop.orders", 7, 3, 30, 4000, times))
        otlp.close()
        request = arrived.get(timeout=30)
    spans = {each.name: each for each in request.resource_spans[0].scope_spans[0].spans}
    assert spans.keys() == {"segment", "decode", "commit"}
    root = spans["segment"]
    about = {each.key: each.value for each in root.attributes}
    assert about["headrace.stream"].string_value == "shop.orders"
    assert about["headrace.seq"].int_value == 7
    assert {each.trace_id for each in spans.values()} == {root.trace_id}
    assert spans["decode"].parent_span_id == spans["commit"].parent_span_id == root.span_id
    assert root.start_time_unix_nano == spans["decode"].start_time_unix_nano
    assert root.end_time_unix_nano - root.start_time_unix_nano == pytest.approx(7e9, abs=1e6)


def test_what_is_not_sampled_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    with receiver() as (address, arrived):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        otlp = Otlp(TelemetryConfig(otlp_traces=True), lambda: ())
        otlp.segment(SegmentTrace("s", 1, work={"read": msg.Work(1, 2, 1)}))
        otlp.close()
        assert arrived.empty()


@pytest.mark.parametrize("collector", ["away", "silent"])
def test_a_collector_that_fails_holds_nothing_up(collector: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither when a segment is added, however many there are, nor at the end."""
    release = threading.Event()
    with contextlib.ExitStack() as stack:
        stack.callback(release.set)
        address = "http://127.0.0.1:9"
        if collector == "silent":
            address, _ = stack.enter_context(receiver(release.wait))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "50")
        otlp = Otlp(BOTH, Metrics(full_status).collect)
        for seq in range(1000):
            otlp.segment(SegmentTrace("s", seq, work={"read": msg.Work(1, 2, 1)}))
        otlp.close()  # returns although nobody has answered
        assert not release.is_set()


def test_another_protocol_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(ConfigError, match="only http/protobuf"):
        Otlp(BOTH, lambda: ())
