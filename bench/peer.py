"""Other tools on the engine's events, on the same servers, in the same run; each has a module in ``bench.peers``.

All read one collection, from before its first document on, by turns in rounds, each in a process of its own that
is timed from its start to its end, including connecting and closing. The same for a load of the whole collection,
in which the changes are not wanted. Then each is killed in the middle, restarted on the state that it has left,
and what has landed is read back.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

import bson
from msgspec import Struct
from msgspec.structs import replace
from pymongo import MongoClient

from bench.local import LocalStack
from bench.measure import Cost, run
from bench.peers import Kind, Landed, Peer, Task, Tell
from bench.workloads import insert

# The collection that configurations of bench.stream name.
COLLECTION = "events0"
_PATIENCE_S = 180
# Nothing more will come after so long without progress; before the first progress, a JVM may have to start on a
# machine that is busy.
_QUIET_S = 10.0
_START_S = 60.0
_LOOK_S = 0.05


class PeerResult(Struct):
    """Medians over the rounds, of rates and CPU; the peak of memory, and the last round's objects.

    Attributes:
        kind: ``stream`` or ``load``.
        events: inserted; documents in a load.
        events_per_s: from the start of its process to its end.
        cpu_us_per_event: user and system time of its processes; that of servers is not in it.
        spread: the largest of its rates over the rounds, divided by the smallest.
        bytes_per_event: on S3, or in files; 0 if it keeps nothing.
        arrived: distinct events read back, in the worst round; 0 if it keeps nothing.
        duplicates: rows beyond the first of an event, in the worst round.
    """

    peer: str
    kind: Kind
    workload: str
    events: int
    rounds: int
    events_per_s: float
    cpu_us_per_event: float
    spread: float
    pss_peak: int
    bytes_per_event: float
    objects: int
    keeps: bool
    arrived: int
    duplicates: int


class KillResult(Struct):
    """The effect of one SIGKILL in the middle.

    Attributes:
        settings: those that matter for it.
        events: inserted before it was started; documents in a load.
        written_at_kill: by its own count, or what had landed.
        arrived: distinct events read back, after it was restarted and had ended or become idle.
        missing: events that are nowhere.
        duplicates: rows beyond the first of an event.
    """

    peer: str
    kind: Kind
    settings: str
    workload: str
    events: int
    written_at_kill: int
    arrived: int
    missing: int
    duplicates: int


def available(peers: Sequence[Peer], tell: Tell) -> list[Peer]:
    """Those whose programs are here or can be had; a word on each of the others."""
    return [peer for peer in peers if peer.build(tell)]


def measure(
    stack: LocalStack, peers: Sequence[Peer], kind: Kind, *, workload: str, events: int, rounds: int, tell: Tell
) -> list[PeerResult]:
    """Insert once, then let each of them read it, by turns."""
    taking_part = [peer for peer in peers if kind in peer.kinds]
    costs: dict[str, list[Cost]] = {peer.name: [] for peer in taking_part}
    landed: dict[str, list[Landed]] = {peer.name: [] for peer in taking_part}
    with _backlog(stack, taking_part, kind, workload, events, tell) as task:
        for number in range(rounds):
            for peer in taking_part:
                mine = replace(task, events=events, prefix=f"{task.prefix}/{number}-{taking_part.index(peer)}")
                mine.clear()
                peer.prepare(mine)
                log = task.directory.parent / f"{number}-{taking_part.index(peer)}.log"
                cost = run(peer.command(mine), peer.environment(mine), log=str(log))
                costs[peer.name].append(cost)
                landed[peer.name].append(peer.landed(mine) if peer.keeps else Landed())
                tell(
                    f"round {number + 1}: {kind:6} {peer.name:34} {events / cost.seconds:9,.0f}/s"
                    f"  {cost.cpu_s / events * 1e6:6.1f} us  {cost.pss_peak / 2**20:5.0f} MiB"
                )
    return [_summary(peer, kind, workload, events, costs[peer.name], landed[peer.name]) for peer in taking_part]


def _summary(
    peer: Peer, kind: Kind, workload: str, events: int, costs: Sequence[Cost], landed: Sequence[Landed]
) -> PeerResult:
    times = [cost.seconds for cost in costs]
    return PeerResult(
        peer=peer.name,
        kind=kind,
        workload=workload,
        events=events,
        rounds=len(costs),
        events_per_s=events / median(times),
        cpu_us_per_event=median(cost.cpu_s for cost in costs) / events * 1e6,
        spread=max(times) / min(times),
        pss_peak=max(cost.pss_peak for cost in costs),
        bytes_per_event=landed[-1].bytes / events,
        objects=landed[-1].objects,
        keeps=peer.keeps,
        arrived=min(each.distinct for each in landed),
        duplicates=max(each.rows - each.distinct for each in landed),
    )


def kill(
    stack: LocalStack, peers: Sequence[Peer], kind: Kind, *, workload: str, events: int, tell: Tell
) -> Iterator[KillResult]:
    """Kill each when half has been written, restart it on the same state, and count what has landed."""
    taking_part = [peer for peer in peers if kind in peer.kinds and peer.keeps]
    with _backlog(stack, taking_part, kind, workload, events, tell) as task:
        for number, peer in enumerate(taking_part):
            mine = replace(task, prefix=f"{task.prefix}/killed-{number}")
            mine.clear()
            peer.prepare(mine)
            log = task.directory.parent / f"killed-{number}.log"
            with _started(peer, mine, log) as process:
                written = _half(peer, mine, process, log, events)
                _kill(process)
            tell(f"{peer.name} killed at {written:,} of {events:,} ({kind})")
            again = task.directory.parent / f"again-{number}.log"
            with _started(peer, mine, again) as process:
                _finish(peer, mine, process, again)
            landed = peer.landed(mine)
            result = KillResult(
                peer=peer.name,
                kind=kind,
                settings=peer.settings,
                workload=workload,
                events=events,
                written_at_kill=written,
                arrived=landed.distinct,
                missing=events - landed.distinct,
                duplicates=landed.rows - landed.distinct,
            )
            tell(f"{peer.name}: {result.missing:,} missing, {result.duplicates:,} twice")
            yield result


@contextmanager
def _backlog(
    stack: LocalStack, peers: Sequence[Peer], kind: Kind, workload: str, events: int, tell: Tell
) -> Iterator[Task]:
    """Events in a collection that exists within the context; yields what a task of a peer needs of them."""
    assert stack.mongo is not None
    database = f"peer_{uuid4().hex[:8]}"
    with MongoClient[dict[str, Any]](stack.mongo.uri) as client, tempfile.TemporaryDirectory() as directory:
        collection = client[database].create_collection(COLLECTION)
        tokens = {}
        for name, watched in (("collection", collection), ("database", client[database])):
            with watched.watch() as stream:
                tokens[name] = bson.encode(stream.resume_token or {})
        stamp = client.admin.command("hello")["operationTime"]
        start = f"{stamp.time},{stamp.inc + 1}"
        task = Task(stack, kind, database, COLLECTION, start, tokens, Path(directory) / "run", database)
        for peer in peers:
            peer.anchor(task)
        tell(f"inserting {events:,} {workload} documents")
        insert([collection], workload, events)
        (newest,) = collection.find({}, {"_id": 1}).sort("$natural", -1).limit(1)
        task.last = str(newest["_id"])
        yield task
        client.drop_database(database)


@contextmanager
def _started(peer: Peer, task: Task, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A running process in a group of its own; all of the group is killed on exit."""
    environment = os.environ | peer.environment(task)
    with (
        log.open("wb") as output,
        subprocess.Popen(
            peer.command(task), stdout=output, stderr=output, env=environment, start_new_session=True
        ) as process,
    ):
        try:
            yield process
        finally:
            _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a process and those that it has started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _half(peer: Peer, task: Task, process: subprocess.Popen[bytes], log: Path, events: int) -> int:
    """Wait until half has been written, and half a batch's time more: a real kill does not wait for its end."""
    deadline = time.monotonic() + _PATIENCE_S
    times: list[float] = []
    written = 0
    while written < events / 2:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{peer.name} did not write half of it\n{_end_of(log)}")
        if (now := peer.written(task, log)) != written:
            written = now
            times.append(time.monotonic())
        time.sleep(0.002)
    time.sleep((times[-1] - times[0]) / max(len(times) - 1, 1) / 2)
    return written


def _finish(peer: Peer, task: Task, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a restarted program has ended, or has written nothing for some time; then tell it to end."""
    grown, at = peer.written(task, log), time.monotonic()
    quiet = _START_S
    while time.monotonic() - at < quiet:
        if (code := process.poll()) is not None:
            if code:
                raise RuntimeError(f"{peer.name} ended with {code}\n{_end_of(log)}")
            return
        if (now := peer.written(task, log)) != grown:
            grown, at, quiet = now, time.monotonic(), _QUIET_S
        time.sleep(_LOOK_S)
    process.send_signal(signal.SIGTERM)
    process.wait(60)


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]
