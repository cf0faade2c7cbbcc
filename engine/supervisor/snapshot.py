"""The status of an engine at one moment: its streams, its processes, and their memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping

import psutil
from msgspec.structs import replace

from engine import __version__
from engine.core.actions import Child
from engine.core.budget import Budget
from engine.core.coordinator import Coordinator
from engine.core.messages import TableSeen
from engine.core.position import split_time, token_data
from engine.core.stream import Stream
from engine.owner import name_of
from engine.supervisor.recent import LoggedError
from engine.supervisor.telemetry import MemberStatus, ProcessStatus, Status, StreamStatus, TableStatus

# How many columns of each collection are in the status: those with the most rescued values.
RESCUED_COLUMNS = 10


def snapshot(
    coordinator: Coordinator,
    pids: Mapping[Child, int],
    memory: Mapping[int, int],
    budget: Budget,
    started_at: float,
    redact: Callable[[str], str],
    errors: tuple[LoggedError, ...] = (),
) -> Status:
    """The current status of an engine.

    Args:
        pids: of the children that are alive.
        memory: proportional set size in bytes of every process, by pid; empty when it could not be measured.
        started_at: seconds since 1970.
        errors: the last of the log.
    """
    streams = (each for each in coordinator.streams.values() if not each.is_of_backfill or each.error)
    return Status(
        version=__version__,
        started_at=started_at,
        at=time.time(),
        draining=coordinator.draining,
        memory_bytes=sum(memory.values()) if memory else None,
        memory_limit_bytes=budget.limit,
        slab_bytes=coordinator.grants.arena.used,
        slab_limit_bytes=budget.arena,
        fleet=_fleet(coordinator, redact),
        unowned=coordinator.fleet.unowned,
        oplog_window_s=coordinator.oplog.window_s,
        oplog_error=redact(coordinator.oplog.error or ""),
        servers=tuple(
            replace(each, problem=redact(each.problem))
            for each in coordinator.health.server_states(time.monotonic())
        ),
        leases_held=sum(each.holds_lease for each in coordinator.streams.values()),
        supervisor=ProcessStatus(
            "supervisor", os.getpid(), True, "", time.process_time(), memory.get(os.getpid()), 0
        ),
        streams=tuple(_of_stream(coordinator, each, redact) for each in streams),
        backfills=tuple(coordinator.splits.progress.values()),
        errors=errors,
        tables=_tables(coordinator, redact),
        tables_lag_s=coordinator.tables.lag_s(time.monotonic()),
        rescued=coordinator.landing.rescues.top(RESCUED_COLUMNS),
        processes=tuple(_of_process(coordinator, each, pids.get(each), memory) for each in coordinator.children),
    )


def _fleet(coordinator: Coordinator, redact: Callable[[str], str]) -> tuple[MemberStatus, ...]:
    fleet = coordinator.fleet
    return tuple(
        MemberStatus(
            name_of(owner),
            each.version,
            each.generation,
            tuple(sorted(each.holds)),
            each.room,
            {stream: redact(reason) for stream, reason in each.cannot.items()},
            each.leaving,
            owner == fleet.me,
        )
        for owner, each in sorted(fleet.members.items())
    )


def _tables(coordinator: Coordinator, redact: Callable[[str], str]) -> tuple[TableStatus, ...]:
    added, failed = coordinator.tables.added, coordinator.tables.failed
    found = ((name, added.get(name, TableSeen())) for name in sorted({*added, *failed}))
    return tuple(
        TableStatus(name, each.commits, each.files, each.rows, redact(failed.get(name, "")))
        for name, each in found
    )


def _of_stream(coordinator: Coordinator, stream: Stream, redact: Callable[[str], str]) -> StreamStatus:
    counters = stream.counters
    at = stream.standing
    headroom = coordinator.oplog.headroom(stream)
    lag_s = max(0.0, time.time() - split_time(at.time)[0]) if at and at.time else None
    return StreamStatus(
        stream=stream.name,
        database=stream.spec.database,
        collections=(*stream.spec.collections, *stream.spec.patterns),
        status=stream.status,
        state=coordinator.health.state_of(stream),
        reading=stream.is_captured and stream.problem is None,
        committed_token=token_data(at.token) if at and at.token else None,
        committed_cluster_time=(at.time or None) if at else None,
        committed_seq=stream.ledger.committed_seq if at else None,
        lag_s=None if lag_s is None else round(lag_s, 1),
        oplog_headroom_s=None if headroom is None else headroom.left_s,
        oplog_lost_in_s=None if headroom is None else headroom.lost_in_s,
        oplog_short=coordinator.oplog.is_short(stream),
        events_read=counters.events_read,
        events_committed=counters.events_committed,
        bytes_read=counters.bytes_read,
        bytes_landed=counters.bytes_landed,
        objects=counters.objects,
        segments=counters.segments,
        segments_in_flight=stream.ledger.in_flight,
        dead_letters=counters.dead_letters,
        truncated_events=counters.truncated_events,
        rescued_values=counters.rescued_values,
        restarts=counters.restarts,
        held_by=name_of(stream.held_by or ""),
        error=redact(str(stream.error)) if stream.error else "",
        problem=redact(stream.problem.text(time.monotonic())) if stream.problem else "",
        replaced=tuple(sorted(stream.replaced)),
    )


def _of_process(
    coordinator: Coordinator, child: Child, pid: int | None, memory: Mapping[int, int]
) -> ProcessStatus:
    life = coordinator.children[child]
    return ProcessStatus(
        process=str(child),
        pid=pid,
        ready=life.ready,
        doing=life.doing,
        cpu_s=life.cpu_s + life.cpu_s_before,
        memory_bytes=None if pid is None else memory.get(pid),
        restarts=life.deaths,
    )


def memory_of_tree() -> dict[int, int]:
    """The proportional set size in bytes of this process and all its descendants, by pid.

    Raises:
        OSError, psutil.Error: /proc cannot be read.
    """
    tree = (psutil.Process(), *psutil.Process().children(recursive=True))
    return {each.pid: proportional_size(each) for each in tree}


def proportional_size(process: psutil.Process) -> int:
    """The PSS of a process in bytes (its RSS where the system has no PSS); 0 when it is gone.

    Raises:
        OSError: /proc cannot be read.
    """
    try:
        info = process.memory_full_info()
    except psutil.Error:
        return 0
    return int(getattr(info, "pss", info.rss))
