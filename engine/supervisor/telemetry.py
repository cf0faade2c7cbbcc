"""What can be seen from outside: /health, /ready, /metrics, /status.

The supervisor puts a snapshot here at every turn of its loop; the server's thread only reads it. Unknown values
are null in /status, and have no sample in /metrics.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, get_args

import msgspec
from msgspec import Struct
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from engine.core.backfill import Progress
from engine.core.rescues import RescuedValues
from engine.core.stream import StreamState

if TYPE_CHECKING:
    from engine.supervisor.endpoints import HttpServer, Reply

STALE_AFTER_S = 15.0
_TEXT, _JSON = "text/plain; charset=utf-8", "application/json"
_METRICS = "text/plain; version=0.0.4; charset=utf-8"


class StreamStatus(Struct, frozen=True):
    """One stream. Unknown values are null.

    Attributes:
        reading: events are captured as they happen, and no problem is known.
        committed_cluster_time: in MongoDB's encoding: seconds since 1970 << 32 | increment.
        held_by: the other engine that has the stream: host and process.
        error: why it has stopped for good.
        problem: what currently keeps it from being read or landed; it is retried.
        replaced: collections whose content was replaced by a rename or $out, and has not been loaded since.
        oplog_headroom_s, oplog_lost_in_s, oplog_short: see ``core.oplog``.
    """

    stream: str
    database: str
    collections: tuple[str, ...]
    status: str
    state: StreamState
    reading: bool
    committed_token: str | None
    committed_cluster_time: int | None
    committed_seq: int | None
    lag_s: float | None
    events_read: int
    events_committed: int
    bytes_read: int
    bytes_landed: int
    objects: int
    segments: int
    segments_in_flight: int
    dead_letters: int
    restarts: int
    held_by: str = ""
    error: str = ""
    rescued_values: int = 0
    truncated_events: int = 0
    problem: str = ""
    replaced: tuple[str, ...] = ()
    oplog_headroom_s: float | None = None
    oplog_lost_in_s: float | None = None
    oplog_short: bool = False

    @property
    def replaced_collections(self) -> int:
        """The number of collections in ``replaced``, for the metric."""
        return len(self.replaced)


class MemberStatus(Struct, frozen=True):
    """One engine of the fleet, as this engine last saw it.

    Attributes:
        engine: host and process.
        generation: of its selection.
        room: how many more streams it could hold.
        cannot: the streams that it cannot read, each with the reason.
        leaving: it is draining.
        is_this: it is this engine.
    """

    engine: str
    version: str
    generation: int
    streams: tuple[str, ...]
    room: int
    cannot: dict[str, str] = {}
    leaving: bool = False
    is_this: bool = False


class ProcessStatus(Struct, frozen=True):
    """One process of the engine."""

    process: str
    pid: int | None
    ready: bool
    doing: str
    cpu_s: float
    memory_bytes: int | None
    restarts: int


Watch = Callable[[Sequence[Progress]], None]


class Status(Struct, frozen=True):
    """The engine at one moment.

    Attributes:
        fleet: the engines that share the streams, this one included; empty until it has seen them.
        unowned: streams that no engine can take.
        oplog_window_s: from the oplog's first entry to its last.
        oplog_error: why that is not known, if it cannot be.
    """

    version: str
    started_at: float
    at: float
    draining: bool
    memory_bytes: int | None
    memory_limit_bytes: int
    slab_bytes: int
    slab_limit_bytes: int
    streams: tuple[StreamStatus, ...] = ()
    processes: tuple[ProcessStatus, ...] = ()
    backfills: tuple[Progress, ...] = ()
    rescued: tuple[RescuedValues, ...] = ()
    fleet: tuple[MemberStatus, ...] = ()
    unowned: tuple[str, ...] = ()
    oplog_window_s: float | None = None
    oplog_error: str = ""


class Telemetry:
    """The snapshot, and the server that shows it.

    State: ``status``, and ``turned_at``: when the supervisor's loop last turned (monotonic). Owner: that loop,
    which replaces them; readers see one whole snapshot.
    """

    def __init__(self) -> None:
        self.status: Status | None = None
        self.turned_at = time.monotonic()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Collector(lambda: self.status))
        self._server: HttpServer | None = None

    def serve(self, listen: str) -> str:
        """Answer HTTP at ``host:port`` from now on; returns the address, with the actual port for port 0.

        Raises:
            ConfigError: the address cannot be used.
        """
        from engine.supervisor.endpoints import HttpServer

        self._server = HttpServer(listen, self.answer)
        return self._server.address

    def close(self) -> None:
        """Stop answering."""
        if self._server is not None:
            self._server.close()

    def answer(self, path: str) -> Reply | None:
        """The reply for a path; None if there is no such path."""
        match path:
            case "/health":
                stuck_s = time.monotonic() - self.turned_at
                text = f"the supervisor's loop has been stuck for {stuck_s:.0f} s\n"
                if stuck_s > STALE_AFTER_S:
                    return 503, _TEXT, text.encode()
                return 200, _TEXT, "".join(f"{line}\n" for line in ("ok", *_warnings(self.status))).encode()
            case "/ready":
                ready, lines = readiness(self.status)
                return 200 if ready else 503, _TEXT, "".join(f"{line}\n" for line in lines).encode()
            case "/metrics":
                return 200, _METRICS, generate_latest(self._registry)
            case "/status":
                return 200, _JSON, msgspec.json.encode(self.status)
        return None


def readiness(status: Status | None) -> tuple[bool, list[str]]:
    """Whether this engine captures everything that it should now, or could take it over; and the reasons if not.

    The first line is the verdict; one line follows for each stream that this engine is not reading.
    """
    if status is None:
        return False, ["starting"]
    unread = [each for each in status.streams if each.state in ("starting", "stalled", "failed")]
    ready = not unread and not status.draining
    verdict = (
        "ok" if ready else "draining" if status.draining else f"{len(unread)} of {len(status.streams)} not read"
    )
    standby = [each for each in status.streams if each.state == "standby"]
    return ready, [verdict, *(_line(each) for each in (*unread, *standby))]


def _warnings(status: Status | None) -> list[str]:
    """What an operator should see to before it is too late."""
    return [
        f"{each.stream}: the oplog is running out: {each.oplog_headroom_s:.0f} s of it are left behind the stream"
        for each in (status.streams if status else ())
        if each.oplog_short and each.oplog_headroom_s is not None
    ]


def _line(stream: StreamStatus) -> str:
    held = ""
    if stream.state == "standby":
        held = f"held by {stream.held_by}" if stream.held_by else "another engine is to take it"
    why = " ".join((stream.error or stream.problem or held).split())
    return f"{stream.stream}: {stream.state}" + (f": {why}" if why else "")


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
    "splits": "Splits of the backfill that are in the lake.",
    "splits_total": "Splits of the backfill.",
    "documents": "Documents of the backfill that are in the lake.",
    "documents_total": "Approximate number of documents in the collection when the backfill was planned.",
    "bytes": "Approximate bytes of BSON of the backfill that are in the lake.",
    "bytes_total": "Approximate bytes of BSON in the collection when the backfill was planned.",
}


class _Collector:
    """Turns the snapshot into metrics at each scrape."""

    def __init__(self, status: Callable[[], Status | None]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        if status is None:
            return
        yield from _of_streams(status.streams)
        for name, text in _BACKFILL.items():
            gauge = GaugeMetricFamily(f"headrace_backfill_{name}", text, labels=["collection"])
            for backfill in status.backfills:
                gauge.add_metric([backfill.collection], getattr(backfill, name))
            yield gauge
        yield _of_rescued(status.rescued)
        yield from _of_processes(status.processes)
        yield _gauge(
            "oplog_window_seconds",
            "Seconds from the oplog's first entry to its last; no sample where it cannot be read.",
            status.oplog_window_s,
        )
        yield _gauge("memory_used_bytes", "Proportional set size of the whole process tree.", status.memory_bytes)
        yield _gauge("memory_limit_bytes", "memory.limit", status.memory_limit_bytes)
        yield _gauge("slab_bytes", "Shared memory in use for slabs.", status.slab_bytes)
        yield _gauge("slab_limit_bytes", "Shared memory available for slabs in total.", status.slab_limit_bytes)


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
    carried = GaugeMetricFamily(
        "headrace_stream_collection",
        "1 for each collection or pattern that the stream carries; the label is empty if it carries all.",
        labels=["stream", "database", "collection"],
    )
    for stream in streams:
        for collection in stream.collections or ("",):
            carried.add_metric([stream.stream, stream.database, collection], 1)
    yield carried


def _of_rescued(rescued: Sequence[RescuedValues]) -> Metric:
    text = "Values in _cdc_rescued, in batches that this engine has read."
    counter = CounterMetricFamily("headrace_rescued_values", text, labels=["database", "collection"])
    for each in rescued:
        counter.add_metric([each.database, each.collection], each.values)
    return counter


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
        gauge.add_metric([], value)
    return gauge


def metrics_markdown() -> str:
    """All metrics as a table."""
    nothing = Status("", 0.0, 0.0, False, None, 0, 0, 0)
    lines = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for metric in _Collector(lambda: nothing).collect():
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        labels = ", ".join(f"`{each}`" for each in getattr(metric, "_labelnames", ()))
        lines.append(f"| `{name}` | {metric.type} | {labels} | {metric.documentation} |")
    return "\n".join(lines) + "\n"
