"""The metrics: one declaration, from which the Prometheus endpoint, the OTLP export and the documentation follow.

Values for which nothing is known have no sample.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from typing import get_args

from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engine import __version__
from engine.core.backfill import Progress
from engine.core.rescues import RescuedValues
from engine.core.servers import ServerStatus
from engine.core.stream import StreamState
from engine.supervisor.figures import MAX_COLLECTIONS, OTHER, Collections, Figures
from engine.supervisor.telemetry import ProcessStatus, Status, StreamStatus, readiness

_COUNTERS = {
    "events_read": "Events read from the change stream.",
    "events_committed": "Events in committed objects.",
    "bytes_read": "Bytes of raw BSON read.",
    "bytes_landed": "Bytes of objects written.",
    "objects": "Objects written.",
    "segments": "Segments committed.",
    "dead_letters": "Events that could not be decoded.",
    "truncated_events": "Events past 16 MiB, read without a document because the server cannot split them.",
    "restarts": "Times the stream was restarted.",
}
_GAUGES = {
    "lag_s": (
        "lag_seconds",
        "Seconds from the committed position's cluster time to now; no sample while the position is unknown.",
    ),
    "oplog_headroom_s": (
        "oplog_headroom_seconds",
        "Seconds from the oplog's first entry to the committed position; at 0 the stream is lost.",
    ),
    "oplog_lost_in_s": (
        "oplog_lost_in_seconds",
        "Seconds until the oplog's first entry passes the committed position, at the rates of the last minutes; "
        "no sample while it does not come closer.",
    ),
    "segments_in_flight": ("segments_in_flight", "Segments between their first batch and their commit."),
    "reading": (
        "reading",
        "1 while the stream is being read and no problem is known: events are captured as they happen.",
    ),
    "replaced_collections": (
        "replaced_collections",
        "Collections whose content was replaced by a rename or $out, and has not been loaded since.",
    ),
}
_BACKFILL = {
    "splits": ("splits", "Splits of the backfill that are in the lake."),
    "splits_total": ("planned_splits", "Splits of the backfill."),
    "documents": ("documents", "Documents of the backfill that are in the lake."),
    "documents_total": (
        "planned_documents",
        "Approximate number of documents in the collection when the backfill was planned.",
    ),
    "bytes": ("bytes", "Approximate bytes of BSON of the backfill that are in the lake."),
    "bytes_total": (
        "planned_bytes",
        "Approximate bytes of BSON in the collection when the backfill was planned.",
    ),
}


class Metrics(Collector):
    """A collector for ``prometheus_client``: all metrics at one moment.

    Args:
        status: the current status; None before the first.
    """

    def __init__(self, status: Callable[[], Status | None]) -> None:
        self._status = status
        self._collections = Collections()
        self.figures = Figures(self._collections)

    def collect(self) -> Iterator[Metric]:
        """The metrics; before the first status only those that do not depend on one."""
        status = self._status()
        yield _info()
        ready = readiness(status)[0]
        yield _gauge("ready", "1 while /ready answers 200: everything is captured, or could be taken over.", ready)
        for each in self.figures.collectors():
            yield from each.collect()
        if status is not None:
            yield from self._of(status)

    def _of(self, status: Status) -> Iterator[Metric]:
        yield from _of_streams(status.streams)
        yield self._token_ages(status.streams)
        yield self._carried(status.streams)
        yield from self._of_backfills(status.backfills)
        yield self._of_rescued(status.rescued)
        yield _of_servers(status.servers)
        yield _gauge("leases_held", "Leases that this engine holds, those of splits included.", status.leases_held)
        own = () if status.supervisor is None else (status.supervisor,)
        yield from _of_processes((*own, *status.processes))
        yield _gauge("start_time_seconds", "When the engine started, in seconds since 1970.", status.started_at)
        yield _gauge(
            "oplog_window_seconds",
            "Seconds from the oplog's first entry to its last; no sample where it cannot be read.",
            status.oplog_window_s,
        )
        yield _gauge(
            "tables_lag_seconds",
            "Seconds since the tables had all that had been committed; no sample without tables.",
            status.tables_lag_s,
        )
        failed = sum(bool(each.error) for each in status.tables) if status.tables_lag_s is not None else None
        yield _gauge("tables_failed", "Tables that lack something, and could not be committed to.", failed)
        yield _gauge("memory_used_bytes", "Proportional set size of the whole process tree.", status.memory_bytes)
        yield _gauge("memory_limit_bytes", "The configured `memory.limit`.", status.memory_limit_bytes)
        yield _gauge("slab_bytes", "Shared memory in use for slabs.", status.slab_bytes)
        yield _gauge("slab_limit_bytes", "Shared memory available for slabs in total.", status.slab_limit_bytes)

    def _token_ages(self, streams: Sequence[StreamStatus]) -> Metric:
        text = (
            "Seconds since a resume token of the stream was last committed; unlike the lag it stays small for an "
            "idle stream."
        )
        gauge = GaugeMetricFamily("headrace_token_age_seconds", text, labels=["stream"])
        now = time.monotonic()
        for stream in streams:
            if (at := self.figures.commits.get(stream.stream)) is not None:
                gauge.add_metric([stream.stream], now - at)
        return gauge

    def _carried(self, streams: Sequence[StreamStatus]) -> Metric:
        carried = GaugeMetricFamily(
            "headrace_stream_collection",
            "1 for each collection or pattern that the stream carries; the label is empty if it carries all, and "
            f"`{OTHER}` for those beyond {MAX_COLLECTIONS}.",
            labels=["stream", "database", "collection"],
        )
        for stream in streams:
            labels = [self._collections.labels(stream.database, each) for each in stream.collections or ("",)]
            for label in dict.fromkeys(labels):
                carried.add_metric([stream.stream, *label], 1)
        return carried

    def _of_backfills(self, backfills: Sequence[Progress]) -> Iterator[Metric]:
        for attribute, (name, text) in _BACKFILL.items():
            gauge = GaugeMetricFamily(f"headrace_backfill_{name}", text, labels=["collection"])
            sums: dict[str, float] = {}
            for each in backfills:
                database, collection = self._collections.labels(*each.collection.split(".", 1))
                label = OTHER if database == OTHER else f"{database}.{collection}"
                sums[label] = sums.get(label, 0) + getattr(each, attribute)
            for label, value in sums.items():
                gauge.add_metric([label], value)
            yield gauge

    def _of_rescued(self, rescued: Sequence[RescuedValues]) -> Metric:
        text = "Values in _cdc_rescued, in batches that this engine has read."
        counter = CounterMetricFamily("headrace_rescued_values", text, labels=["database", "collection"])
        sums: dict[tuple[str, str], int] = {}
        for each in rescued:
            labels = self._collections.labels(each.database, each.collection)
            sums[labels] = sums.get(labels, 0) + each.values
        for labels, values in sums.items():
            counter.add_metric(labels, values)
        return counter


def _info() -> Metric:
    info = GaugeMetricFamily(
        "headrace_build_info", "1, with the versions of the engine and of Python.", labels=["version", "python"]
    )
    info.add_metric([__version__, platform.python_version()], 1)
    return info


def _of_streams(streams: Sequence[StreamStatus]) -> Iterator[Metric]:
    for name, text in _COUNTERS.items():
        counter = CounterMetricFamily(f"headrace_{name}", text, labels=["stream"])
        for stream in streams:
            counter.add_metric([stream.stream], getattr(stream, name))
        yield counter
    for attribute, (name, text) in _GAUGES.items():
        gauge = GaugeMetricFamily(f"headrace_{name}", text, labels=["stream"])
        for stream in streams:
            if (value := getattr(stream, attribute)) is not None:
                gauge.add_metric([stream.stream], float(value))
        yield gauge
    states = GaugeMetricFamily(
        "headrace_stream_state",
        f"1 for the state that the stream is in, 0 for the others: {', '.join(get_args(StreamState))}.",
        labels=["stream", "state"],
    )
    for stream in streams:
        for state in get_args(StreamState):
            states.add_metric([stream.stream, state], float(state == stream.state))
    yield states


def _of_servers(servers: Sequence[ServerStatus]) -> Metric:
    gauge = GaugeMetricFamily(
        "headrace_server_up",
        "1 while `mongodb`, the `sink` or the `state` store answers this engine, 0 while it is away; no sample "
        "before the first answer.",
        labels=["server"],
    )
    for each in servers:
        if each.up is not None:
            gauge.add_metric([each.server], float(each.up))
    return gauge


def _of_processes(processes: Sequence[ProcessStatus]) -> Iterator[Metric]:
    cpu = CounterMetricFamily("headrace_cpu_seconds", "User and system time of a process.", labels=["process"])
    restarts = CounterMetricFamily("headrace_process_restarts", "Times the process died.", labels=["process"])
    memory = GaugeMetricFamily("headrace_memory_bytes", "Proportional set size of a process.", labels=["process"])
    for process in processes:
        cpu.add_metric([process.process], process.cpu_s)
        restarts.add_metric([process.process], process.restarts)
        if process.memory_bytes is not None:
            memory.add_metric([process.process], process.memory_bytes)
    yield from (cpu, restarts, memory)


def _gauge(name: str, text: str, value: float | None) -> Metric:
    """A value for the whole engine; no sample if it is unknown."""
    gauge = GaugeMetricFamily(f"headrace_{name}", text, labels=[])
    if value is not None:
        gauge.add_metric([], float(value))
    return gauge


def metrics_markdown() -> str:
    """All metrics as a table."""
    metrics = Metrics(lambda: Status("", 0.0, 0.0, False, None, 0, 0, 0))
    instruments = {each._name: each for each in metrics.figures.collectors()}
    lines = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for metric in metrics.collect():
        declared: Metric | MetricWrapperBase = instruments.get(metric.name, metric)
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        labels = ", ".join(f"`{each}`" for each in getattr(declared, "_labelnames", ()))
        lines.append(f"| `{name}` | {metric.type} | {labels} | {metric.documentation} |")
    return "\n".join(lines) + "\n"
