"""What can be seen from outside: /health, /ready, /metrics, /status.

The supervisor puts a snapshot here once a second; the server's threads only read it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import msgspec
from msgspec import Struct
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from engine.core.backfill import Progress
from engine.core.rescues import RescuedValues
from engine.errors import ConfigError

STALE_AFTER_S = 15.0


class StreamStatus(Struct, frozen=True):
    """One stream, for people and machines. Times are seconds since 1970; 0 for never."""

    stream: str
    database: str
    collections: tuple[str, ...]
    status: str
    reading: bool
    committed_token: str
    committed_cluster_time: int
    committed_seq: int
    lag_s: float
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


class ProcessStatus(Struct, frozen=True):
    """One process of the engine."""

    process: str
    pid: int
    ready: bool
    doing: str
    cpu_s: float
    memory_bytes: int
    restarts: int


Watch = Callable[[Sequence[Progress]], None]


class Status(Struct, frozen=True):
    """The engine at one moment."""

    version: str
    started_at: float
    at: float
    draining: bool
    memory_bytes: int
    memory_limit_bytes: int
    slab_bytes: int
    slab_limit_bytes: int
    streams: tuple[StreamStatus, ...] = ()
    processes: tuple[ProcessStatus, ...] = ()
    backfills: tuple[Progress, ...] = ()
    rescued: tuple[RescuedValues, ...] = ()


class Telemetry:
    """The snapshot, and the server that shows it.

    State: ``status``. Owner: the supervisor's loop, which replaces it; readers see one whole snapshot.
    """

    def __init__(self) -> None:
        self.status: Status | None = None
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Collector(lambda: self.status))
        self._server: WSGIServer | None = None

    def serve(self, listen: str) -> str:
        """Answer HTTP at ``host:port`` from now on; the address, with the port that port 0 became.

        Raises:
            ConfigError: the address cannot be used.
        """
        host, _, port = listen.rpartition(":")
        try:
            self._server = make_server(host or "127.0.0.1", int(port), self._app, _Server, _Handler)
        except (OSError, OverflowError) as error:
            remedy = 'Choose another telemetry.listen, or "" for none.'
            raise ConfigError(f"listen on {listen}", str(error), remedy) from error
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="http", daemon=True).start()
        return f"{self._server.server_name}:{self._server.server_port}"

    def close(self) -> None:
        """Stop answering."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def _app(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        code, kind, body = self._answer(environ.get("PATH_INFO", "/"))
        start_response(code, [("Content-Type", kind), ("Content-Length", str(len(body)))])
        return [body]

    def _answer(self, path: str) -> tuple[str, str, bytes]:
        status = self.status
        match path:
            case "/health":
                return _verdict(unhealthy(status))
            case "/ready":
                return _verdict(unready(status))
            case "/metrics":
                return "200 OK", "text/plain; version=0.0.4; charset=utf-8", generate_latest(self._registry)
            case "/status":
                return "200 OK", "application/json", msgspec.json.encode(status)
        return "404 Not Found", "text/plain", b"/health /ready /metrics /status\n"


def unhealthy(status: Status | None) -> str:
    """Why the engine needs a hand; empty when it does not."""
    if status is None:
        return ""
    if time.time() - status.at > STALE_AFTER_S:
        return "the supervisor's loop stands still"
    failed = [f"{stream.stream}: {stream.error}" for stream in status.streams if stream.status == "failed"]
    return "; ".join(failed)


def unready(status: Status | None) -> str:
    """Why the engine does not capture everything at this moment; empty when it does."""
    if status is None:
        return "starting"
    waiting = [stream.stream for stream in status.streams if not stream.reading]
    return f"not reading: {', '.join(waiting)}" if waiting else unhealthy(status)


def _verdict(problem: str) -> tuple[str, str, bytes]:
    if problem:
        return "503 Service Unavailable", "text/plain", f"{problem}\n".encode()
    return "200 OK", "text/plain", b"ok\n"


_COUNTERS = {
    "events_read": "Events read from the change stream.",
    "events_committed": "Events in committed objects.",
    "bytes_read": "Bytes of raw BSON read.",
    "bytes_landed": "Bytes of objects written.",
    "objects": "Objects written.",
    "segments": "Segments committed.",
    "dead_letters": "Events that could not be decoded.",
    "restarts": "Times that the stream was started over.",
}
_GAUGES = {
    "lag_s": ("lag_seconds", "Seconds from the committed position's cluster time to now."),
    "segments_in_flight": ("segments_in_flight", "Segments between their first batch and their commit."),
}


_BACKFILL = {
    "splits": "Splits of the backfill that are in the lake.",
    "splits_total": "Splits of the backfill.",
    "documents": "Documents of the backfill that are in the lake.",
    "documents_total": "Documents of the collection when the backfill was planned, about.",
    "bytes": "Bytes of BSON of these documents, about.",
    "bytes_total": "Bytes of BSON of the collection when the backfill was planned, about.",
}


class _Collector:
    """Turns the snapshot into metrics when they are asked for."""

    def __init__(self, status: Callable[[], Status | None]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        if status is None:
            return
        for name, text in _COUNTERS.items():
            counter = CounterMetricFamily(f"headrace_{name}", text, labels=["stream"])
            for stream in status.streams:
                counter.add_metric([stream.stream], getattr(stream, name))
            yield counter
        for attribute, (name, text) in _GAUGES.items():
            gauge = GaugeMetricFamily(f"headrace_{name}", text, labels=["stream"])
            for stream in status.streams:
                gauge.add_metric([stream.stream], getattr(stream, attribute))
            yield gauge
        carried = GaugeMetricFamily(
            "headrace_stream_collection",
            "1 for each collection that the stream carries; an empty one where it carries all.",
            labels=["stream", "database", "collection"],
        )
        for stream in status.streams:
            for collection in stream.collections or ("",):
                carried.add_metric([stream.stream, stream.database, collection], 1)
        yield carried
        rescued = CounterMetricFamily(
            "headrace_rescued_values",
            "Values in _cdc_rescued, of batches that this engine has read.",
            labels=["database", "collection"],
        )
        for each in status.rescued:
            rescued.add_metric([each.database, each.collection], each.values)
        yield rescued
        reading = GaugeMetricFamily("headrace_reading", "1 while the stream is being read.", labels=["stream"])
        for stream in status.streams:
            reading.add_metric([stream.stream], int(stream.reading))
        yield reading
        for name, text in _BACKFILL.items():
            gauge = GaugeMetricFamily(f"headrace_backfill_{name}", text, labels=["collection"])
            for backfill in status.backfills:
                gauge.add_metric([backfill.collection], getattr(backfill, name))
            yield gauge
        yield from self._processes(status)

    def _processes(self, status: Status) -> Iterator[Metric]:
        cpu = CounterMetricFamily("headrace_cpu_seconds", "User and system time of a process.", labels=["process"])
        restarts = CounterMetricFamily("headrace_process_restarts", "Times a process died.", labels=["process"])
        memory = GaugeMetricFamily(
            "headrace_memory_bytes", "Proportional set size of a process.", labels=["process"]
        )
        for process in status.processes:
            cpu.add_metric([process.process], process.cpu_s)
            restarts.add_metric([process.process], process.restarts)
            memory.add_metric([process.process], process.memory_bytes)
        yield from (cpu, restarts, memory)
        used = "Proportional set size of the whole process tree."
        yield GaugeMetricFamily("headrace_memory_used_bytes", used, value=status.memory_bytes)
        yield GaugeMetricFamily("headrace_memory_limit_bytes", "memory.limit", value=status.memory_limit_bytes)
        yield GaugeMetricFamily("headrace_slab_bytes", "Shared memory in use for slabs.", value=status.slab_bytes)
        yield GaugeMetricFamily(
            "headrace_slab_limit_bytes", "Shared memory there is for slabs.", value=status.slab_limit_bytes
        )


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # a request is no event worth a line
        pass
