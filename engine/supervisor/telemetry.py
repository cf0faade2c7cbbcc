"""What can be seen from outside: /health, /ready, /metrics, /status.

The supervisor puts a snapshot here at every turn of its loop; the server's thread only reads it. Unknown values
are null in /status, and have no sample in /metrics.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct
from prometheus_client import CollectorRegistry, generate_latest

from engine.config.tree import TelemetryConfig
from engine.core.backfill import Progress
from engine.core.rescues import RescuedValues
from engine.core.servers import ServerStatus
from engine.core.stream import StreamState
from engine.supervisor.recent import LoggedError

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


class TableStatus(Struct, frozen=True):
    """One table: what this engine has added to it, and why it lacks something.

    Attributes:
        table: its name, after that of the database; "" for what concerns all tables.
    """

    table: str
    commits: int
    files: int
    rows: int
    error: str = ""


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
        servers: which of the servers that the engine needs are away.
        leases_held: how many leases are this engine's, those of splits included.
        supervisor: the engine's main process; ``processes`` are its children.
        errors: the last warnings and errors of the log, the latest first.
        tables_lag_s: how long ago the tables had all that had been committed; null without tables.
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
    servers: tuple[ServerStatus, ...] = ()
    leases_held: int = 0
    supervisor: ProcessStatus | None = None
    errors: tuple[LoggedError, ...] = ()
    tables: tuple[TableStatus, ...] = ()
    tables_lag_s: float | None = None


class Telemetry:
    """The snapshot, and the server that shows it.

    State: ``status``, and ``turned_at``: when the supervisor's loop last turned (monotonic). Owner: that loop,
    which replaces them; readers see one whole snapshot.

    Attributes:
        registry: the metrics; see ``supervisor.metrics``.
    """

    def __init__(self) -> None:
        self.status: Status | None = None
        self.turned_at = time.monotonic()
        self.registry = CollectorRegistry(auto_describe=False)
        self._server: HttpServer | None = None

    def serve(self, config: TelemetryConfig) -> str:
        """Answer HTTP from now on; returns the address, with the actual port for port 0.

        Raises:
            ConfigError: the address or the certificate cannot be used.
        """
        from engine.supervisor.access import certificate_of, credentials_of
        from engine.supervisor.endpoints import HttpServer

        self._server = HttpServer(config.listen, self.answer, certificate_of(config), credentials_of(config))
        return self._server.address

    def close(self) -> None:
        """Stop answering."""
        if self._server is not None:
            self._server.close()

    def answer(self, path: str) -> Reply | None:
        """The reply for a path; None if there is no such path."""
        # Imported here, so that a run without endpoints does not load them.
        from engine.supervisor.endpoints import Reply
        from engine.supervisor.page import page

        match path:
            case "/":
                return page()
            case "/health":
                stuck_s = time.monotonic() - self.turned_at
                text = f"the supervisor's loop has been stuck for {stuck_s:.0f} s\n"
                if stuck_s > STALE_AFTER_S:
                    return Reply(503, _TEXT, text.encode())
                return Reply(200, _TEXT, "".join(f"{line}\n" for line in ("ok", *_warnings(self.status))).encode())
            case "/ready":
                ready, lines = readiness(self.status)
                return Reply(200 if ready else 503, _TEXT, "".join(f"{line}\n" for line in lines).encode())
            case "/metrics":
                return Reply(200, _METRICS, generate_latest(self.registry))
            case "/status" if self.status is None:
                return Reply(503, _JSON, msgspec.json.encode({"error": "starting"}))
            case "/status":
                return Reply(200, _JSON, msgspec.json.encode(self.status))
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
