"""Metrics and traces over OTLP, with the SDK of OpenTelemetry (the extra ``headrace[otel]``).

The metrics are those of ``supervisor.metrics``, converted; the traces are those of ``supervisor.traces``. Where
they are sent, how often, and what is sampled is up to the environment variables of the SDK (``OTEL_*``).

Everything that waits for the collector is in threads of its own: one of ours for metrics, the SDK's for spans,
whose queue is bounded and drops what it cannot hold. A collector that is away is a warning in the log, and nothing
else.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

from engine import __version__
from engine.config.tree import TelemetryConfig
from engine.errors import ConfigError
from engine.owner import this_owner
from engine.supervisor.traces import SegmentTrace

CLOSE_S = 2.0
_DEFAULT_INTERVAL_MS = 60_000
_SCOPE = "headrace"
_UNITS = {"seconds": "s", "bytes": "By"}

log = logging.getLogger("headrace")


class Otlp:
    """Sends metrics and traces until it is closed.

    Args:
        collect: the current metrics; called from another thread.

    Raises:
        ConfigError: the extra is not installed, or the environment asks for another protocol than HTTP.
    """

    def __init__(self, config: TelemetryConfig, collect: Callable[[], Iterable[Metric]]) -> None:
        _refuse_other_protocols()
        try:
            from opentelemetry.sdk.resources import Resource
        except ImportError as error:
            remedy = "Install headrace[otel], or set telemetry.otlp_metrics and telemetry.otlp_traces to false."
            raise ConfigError(
                "export over OTLP", f"the SDK of OpenTelemetry is missing ({error})", remedy
            ) from error
        named = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": "headrace"}
        own = named | {"service.version": __version__, "service.instance.id": this_owner()}
        self._resource = Resource.create(own)
        self._collect = collect
        self._started_ns = time.time_ns()
        self._closing = threading.Event()
        self._tracer: Any = None
        self._provider: Any = None
        if config.otlp_traces:
            self._tracer, self._provider = self._traced()
        self._exporter: Any = None
        self._thread: threading.Thread | None = None
        if config.otlp_metrics:
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

            self._exporter = OTLPMetricExporter()
            self._thread = threading.Thread(target=self._run, name="otlp", daemon=True)
            self._thread.start()

    def _traced(self) -> tuple[Any, Any]:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        provider = TracerProvider(resource=self._resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return provider.get_tracer(_SCOPE, __version__), provider

    def segment(self, trace: SegmentTrace) -> None:
        """Add a segment's trace to what is to be sent. Does not wait."""
        if self._tracer is None or not trace.work:
            return
        from opentelemetry.trace import set_span_in_context

        since = time.time_ns() - time.monotonic_ns()  # the machine's monotonic clock is that of all processes
        about = {
            "headrace.stream": trace.stream,
            "headrace.seq": trace.seq,
            "headrace.epoch": trace.epoch,
            "headrace.events": trace.events,
            "headrace.bytes": trace.size,
        }
        root = self._tracer.start_span("segment", start_time=since + int(trace.began * 1e9), attributes=about)
        inside = set_span_in_context(root)
        for stage, work in trace.work.items():
            busy = {"headrace.busy_seconds": round(work.busy_s, 6)}
            begin = since + int(work.began * 1e9)
            span = self._tracer.start_span(stage, context=inside, start_time=begin, attributes=busy)
            span.end(since + int(work.ended * 1e9))
        root.end(since + int(trace.ended * 1e9))

    def close(self) -> None:
        """Send what is left; gives up after ``CLOSE_S``: a collector that hangs must not hold up the end."""
        self._closing.set()
        closer = threading.Thread(target=self._shut_down, name="otlp end", daemon=True)
        closer.start()
        closer.join(CLOSE_S)

    def _shut_down(self) -> None:
        if self._provider is not None:
            self._provider.shutdown()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        interval_s = _interval_s()
        while not self._closing.wait(interval_s):
            self._export()
        self._export()
        self._exporter.shutdown()

    def _export(self) -> None:
        """Send the metrics once; failures are logged, by the SDK or here."""
        try:
            self._exporter.export(converted(self._collect(), self._resource, self._started_ns))
        except Exception as error:
            log.warning("metrics cannot be sent over OTLP", extra={"fields": {"cause": repr(error)}})


def _refuse_other_protocols() -> None:
    for name in ("", "_METRICS", "_TRACES"):
        variable = f"OTEL_EXPORTER_OTLP{name}_PROTOCOL"
        if (protocol := os.environ.get(variable, "http/protobuf")) != "http/protobuf":
            remedy = "Use the collector's HTTP port (4318), and leave the variable unset."
            raise ConfigError(
                "export over OTLP", f"{variable} is {protocol!r}; only http/protobuf is spoken", remedy
            )


def _interval_s() -> float:
    """``OTEL_METRIC_EXPORT_INTERVAL``, in seconds.

    As the specification wants it, a value that is no number is ignored.
    """
    text = os.environ.get("OTEL_METRIC_EXPORT_INTERVAL", "")
    return (int(text) if text.isdigit() and int(text) else _DEFAULT_INTERVAL_MS) / 1000


def converted(metrics: Iterable[Metric], resource: Any, started_ns: int) -> Any:
    """Metrics of ``prometheus_client`` as the SDK's ``MetricsData``: cumulative since ``started_ns``."""
    from opentelemetry.sdk.metrics.export import MetricsData, ResourceMetrics, ScopeMetrics
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    at_ns = time.time_ns()
    found = [_metric(each, started_ns, at_ns) for each in metrics if each.samples]
    scope = ScopeMetrics(InstrumentationScope(_SCOPE, __version__), found, "")
    return MetricsData([ResourceMetrics(resource, [scope], "")])


def _metric(metric: Metric, started_ns: int, at_ns: int) -> Any:
    from opentelemetry.sdk.metrics import export as sdk

    cumulative = sdk.AggregationTemporality.CUMULATIVE
    data: Any
    if metric.type == "histogram":
        points = [_distribution(each, started_ns, at_ns) for each in _by_labels(metric.samples)]
        data = sdk.Histogram(points, cumulative)
    else:
        since_ns = started_ns if metric.type == "counter" else 0
        numbers = [sdk.NumberDataPoint(each.labels, since_ns, at_ns, float(each.value)) for each in metric.samples]
        data = sdk.Sum(numbers, cumulative, True) if metric.type == "counter" else sdk.Gauge(numbers)
    name = f"{metric.name}_total" if metric.type == "counter" else metric.name
    return sdk.Metric(name, metric.documentation, _UNITS.get(metric.name.rpartition("_")[2], ""), data)


def _by_labels(samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    """The samples of a histogram, those of the same labels together."""
    found: dict[tuple[tuple[str, str], ...], list[Sample]] = {}
    for each in samples:
        labels = tuple(sorted((name, value) for name, value in each.labels.items() if name != "le"))
        found.setdefault(labels, []).append(each)
    yield from found.values()


def _distribution(samples: Sequence[Sample], started_ns: int, at_ns: int) -> Any:
    from opentelemetry.sdk.metrics.export import HistogramDataPoint

    bounds = [float(each.labels["le"]) for each in samples if each.name.endswith("_bucket")]
    cumulated = [int(each.value) for each in samples if each.name.endswith("_bucket")]
    counts = [here - before for before, here in zip([0, *cumulated], cumulated, strict=False)]
    labels = {name: value for name, value in samples[0].labels.items() if name != "le"}
    total = next((each.value for each in samples if each.name.endswith("_sum")), 0.0)
    unknown: Any = None  # the extremes, which OTLP then leaves out
    return HistogramDataPoint(
        labels, started_ns, at_ns, cumulated[-1], total, counts, bounds[:-1], unknown, unknown
    )
