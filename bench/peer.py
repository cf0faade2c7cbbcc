"""Rigatoni (crates ``rigatoni-*`` 0.2.0), a change data capture library in Rust, on the engine's workload.

Like the engine, it writes a change stream to Parquet on S3. ``bench/peers/rigatoni`` makes a program of it, with
the settings that its guides recommend for throughput, cited there. What is not comparable:

- Its Parquet has seven columns for any collection: the document is one column of JSON text.
- It reads the backlog from a resume token that is put into its state store beforehand, because by itself it can
  only start at the present time. The token is taken before the first insert, so it reads what the engine reads.
- It writes a batch when that is full, when a timer fires, or when it is told to stop. Its timer is set not to fire
  within a backlog, and it is told to stop after the last event, so its time includes no waiting.
- Its cost includes a write to the state store for every event, as far as that happens in its own process.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Literal

import bson
import duckdb
from msgspec import Struct
from pymongo import MongoClient
from redis import Redis

from bench.local import LocalStack
from bench.measure import PEERS, Cost, run
from bench.workloads import insert

Watch = Literal["collection", "database"]
Format = Literal["parquet", "jsonl.zst"]

DATABASE, COLLECTION = "bench_peer", "events"
SOURCES = Path(__file__).parent / "peers" / "rigatoni"
_TARGET = PEERS / "rigatoni"
# "High throughput" in its production guide, and the most that it allows. It was a tenth faster than 5,000 when
# other processes used part of the machine, and as fast when none did (within the spread).
BATCH = 10_000
# "Balanced (recommended)" in the same guide: events lost in a kill should be its fault, not that of our settings.
BATCH_TO_KILL = 5000
# Longer than any backlog takes: its timer cuts a batch even while events keep coming.
NEVER_S = 3600
# Its default.
BATCH_TIMEOUT_S = 5
PATIENCE_S = 120
QUIET_S = 10.0


class PeerResult(Struct):
    """Medians over the rounds, of rates and CPU; the peak of memory, and the last round's objects.

    Attributes:
        events: inserted.
        events_per_s: from the start of its process to its end, on the same clock as the engine.
        cpu_us_per_event: user and system time of its process; that of the state store is not in it.
        bytes_per_event: on S3.
        arrived: distinct events read back from the objects, in the worst round.
        duplicates: rows beyond the first of an event, in the worst round.
    """

    workload: str
    watch: Watch
    format: Format
    events: int
    rounds: int
    events_per_s: float
    cpu_us_per_event: float
    pss_peak: int
    bytes_per_event: float
    objects: int
    arrived: int
    duplicates: int


class KillResult(Struct):
    """The effect of one SIGKILL in the middle of a backlog.

    Attributes:
        events: inserted before it was started.
        written_at_kill: its own count shortly before.
        arrived: distinct events read back from the objects, after it was restarted and had become idle.
        missing: events that are in no object.
        duplicates: rows beyond the first of an event.
    """

    workload: str
    watch: Watch
    events: int
    written_at_kill: int
    arrived: int
    missing: int
    duplicates: int


class Landed(Struct):
    """What is on S3 under a prefix, read back by DuckDB."""

    rows: int
    distinct: int
    objects: int
    bytes: int


def find_or_build() -> Path | None:
    """The program, built by cargo if its sources have changed; None if that fails, with the reason on stderr."""
    sources = sorted(path for path in SOURCES.rglob("*") if path.suffix in (".rs", ".toml", ".lock"))
    stamp = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    program, stamped = _TARGET / "release" / "rigatoni-peer", _TARGET / "stamp"
    if program.exists() and stamped.exists() and stamped.read_text() == stamp:
        return program
    cargo = shutil.which("cargo") or shutil.which("cargo", path=str(Path.home() / ".cargo" / "bin"))
    if not cargo:
        print("peer: there is no cargo to build Rigatoni with; see https://rustup.rs", file=sys.stderr)
        return None
    print(f"peer: building Rigatoni in {_TARGET}, which takes some minutes", file=sys.stderr)
    command = [cargo, "build", "--release", "--locked", "--manifest-path", str(SOURCES / "Cargo.toml")]
    if subprocess.run(command, env=os.environ | {"CARGO_TARGET_DIR": str(_TARGET)}, check=False).returncode:
        print("peer: Rigatoni could not be built", file=sys.stderr)
        return None
    stamped.write_text(stamp)
    return program


def measure_peer(
    stack: LocalStack,
    *,
    workload: str,
    events: int,
    rounds: int,
    tell: Callable[[str], None],
    watch: Watch = "collection",
    form: Format = "parquet",
    batch: int = BATCH,
) -> PeerResult | None:
    """Insert once, then let it read the backlog in rounds; None if there is no program.

    Timed like the engine: from the start of the process to its end, including connecting and closing. The process
    stops its pipeline after ``events`` events, and ends when the pipeline has written them.
    """
    program = find_or_build()
    if program is None:
        return None
    with _backlog(stack, workload, events, watch, tell) as token:
        costs: list[Cost] = []
        landed: list[Landed] = []
        for number in range(rounds):
            prefix = f"peer/round{number}"
            _reset(stack, prefix, watch, token)
            arguments = _arguments(stack, prefix, events=events, watch=watch, form=form, batch=batch)
            with tempfile.TemporaryDirectory() as directory:
                log = Path(directory) / "peer.log"
                costs.append(run(_command(program, arguments), log=str(log)))
            landed.append(_landed(stack, prefix, form))
            tell(f"round {number + 1}: peer   {events / costs[-1].seconds:9,.0f}/s")
    return PeerResult(
        workload=workload,
        watch=watch,
        format=form,
        events=events,
        rounds=rounds,
        events_per_s=events / median(cost.seconds for cost in costs),
        cpu_us_per_event=median(cost.cpu_s for cost in costs) / events * 1e6,
        pss_peak=max(cost.pss_peak for cost in costs),
        bytes_per_event=landed[-1].bytes / events,
        objects=landed[-1].objects,
        arrived=min(each.distinct for each in landed),
        duplicates=max(each.rows - each.distinct for each in landed),
    )


def kill_test(
    stack: LocalStack,
    *,
    workload: str = "orders",
    events: int = 100_000,
    tell: Callable[[str], None],
    watch: Watch = "database",
) -> KillResult | None:
    """Kill it when half of a backlog has landed, restart it on the same state, and count what has landed.

    The kill comes half a batch's time after a batch was written, as a real one would not wait for the end of a
    batch.

    With ``watch="database"`` it resumes as published. With ``"collection"`` it gets help: version 0.2.0 does not
    resume there but opens its stream at the present time, so our program gives it the token from its store that it
    writes after each upload; that shows what it could do, not what it does.
    """
    program = find_or_build()
    if program is None:
        return None
    prefix = "peer/killed"
    arguments = _arguments(stack, prefix, watch=watch, batch=BATCH_TO_KILL, timeout_s=BATCH_TIMEOUT_S)
    with _backlog(stack, workload, events, watch, tell) as token, tempfile.TemporaryDirectory() as directory:
        _reset(stack, prefix, watch, token)
        with _started(program, arguments, Path(directory) / "first.log") as (first, log):
            deadline = time.monotonic() + PATIENCE_S
            while (written := _written(log)) < events / 2:
                if first.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the peer did not write half of it\n{log.read_text()[-2000:]}")
                time.sleep(0.002)
            time.sleep(_batch_seconds(log) / 2)
            first.kill()
            first.wait()
        tell(f"killed at {written:,} of {events:,} events")
        with _started(program, arguments, Path(directory) / "second.log") as (second, log):
            grown, at = 0, time.monotonic()
            while time.monotonic() - at < QUIET_S:
                if second.poll() is not None:
                    raise RuntimeError(f"the peer ended with {second.returncode}\n{log.read_text()[-2000:]}")
                if (now := _written(log)) != grown:
                    grown, at = now, time.monotonic()
                time.sleep(0.1)
            second.send_signal(signal.SIGTERM)
            second.wait(60)
    landed = _landed(stack, prefix, "parquet")
    return KillResult(
        workload=workload,
        watch=watch,
        events=events,
        written_at_kill=written,
        arrived=landed.distinct,
        missing=events - landed.distinct,
        duplicates=landed.rows - landed.distinct,
    )


@contextmanager
def _backlog(
    stack: LocalStack, workload: str, events: int, watch: Watch, tell: Callable[[str], None]
) -> Iterator[bytes]:
    """Events in a collection that exists within the context; yields a resume token from before the first."""
    assert stack.mongo is not None
    with MongoClient[dict[str, Any]](stack.mongo.uri) as client:
        client.drop_database(DATABASE)
        collection = client[DATABASE].create_collection(COLLECTION)
        with (collection if watch == "collection" else client[DATABASE]).watch() as stream:
            token = stream.resume_token
        assert token is not None
        tell(f"inserting {events:,} {workload} documents")
        insert([collection], workload, events)
        yield bson.encode(token)
        client.drop_database(DATABASE)


def _reset(stack: LocalStack, prefix: str, watch: Watch, token: bytes) -> None:
    """Clear the prefix and the state, and put a resume token where it looks for one."""
    filesystem = stack.s3.filesystem()
    if filesystem.exists(f"{stack.bucket}/{prefix}"):
        filesystem.rm(f"{stack.bucket}/{prefix}", recursive=True)
    name = COLLECTION if watch == "collection" else f"resume_token:database:{DATABASE}"
    with Redis.from_url(stack.valkey.url) as redis:
        for key in redis.scan_iter("rigatoni:*"):
            redis.delete(key)
        redis.set(f"rigatoni:resume_token:{name}", token)


def _arguments(
    stack: LocalStack,
    prefix: str,
    *,
    watch: Watch,
    events: int = 0,
    form: Format = "parquet",
    batch: int = BATCH,
    timeout_s: int = NEVER_S,
) -> dict[str, str | int]:
    assert stack.mongo is not None
    return {
        "uri": stack.mongo.uri,
        "database": DATABASE,
        "collection": COLLECTION,
        "bucket": stack.bucket,
        "prefix": prefix,
        "endpoint": stack.s3.endpoint_url,
        "access-key": stack.s3.access_key,
        "secret-key": stack.s3.secret_key,
        "redis": stack.valkey.url,
        "watch": watch,
        "format": form,
        "batch": batch,
        "batch-timeout-s": timeout_s,
        "patience-s": PATIENCE_S,
        "events": events,
    }


def _command(program: Path, arguments: dict[str, str | int]) -> list[str]:
    """Its command, with stderr discarded.

    It prints a warning there for most events of a quick burst, because it takes the counter in a cluster time for
    milliseconds, of which there are only a thousand in a second; it then writes the present time as
    ``cluster_time``. Its log is on stdout.
    """
    words = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    return ["/bin/sh", "-c", 'exec "$0" "$@" 2>/dev/null', str(program), *words]


@contextmanager
def _started(
    program: Path, arguments: dict[str, str | int], log: Path
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A running process and its log; the process is always killed on exit."""
    with log.open("wb") as output, subprocess.Popen(_command(program, arguments), stdout=output) as process:
        try:
            yield process, log
        finally:
            process.kill()


def _progress(log: Path) -> list[tuple[int, float]]:
    """The events written so far and when, in seconds from its start."""
    lines = log.read_text().splitlines(keepends=True)
    found = [line.split() for line in lines if line.startswith("written ") and line.endswith("\n")]
    return [(int(events), float(seconds)) for _, events, seconds in found]


def _written(log: Path) -> int:
    progress = _progress(log)
    return progress[-1][0] if progress else 0


def _batch_seconds(log: Path) -> float:
    """The mean time of a batch."""
    progress = _progress(log)
    return (progress[-1][1] - progress[0][1]) / max(len(progress) - 1, 1)


def _landed(stack: LocalStack, prefix: str, form: Format) -> Landed:
    filesystem = stack.s3.filesystem()
    database = duckdb.connect()
    database.register_filesystem(filesystem)
    files = f"'s3://{stack.bucket}/{prefix}/**/*.{form}', filename = true, hive_partitioning = false"
    source, token = f"read_parquet({files})", "resume_token"
    if form == "jsonl.zst":
        columns = "{'_id': 'JSON', 'operationType': 'VARCHAR'}"
        source, token = f"read_ndjson({files}, compression = 'zstd', columns = {columns})", "_id::varchar"
    query = f"select count(*), count(distinct {token}), count(distinct filename) from {source}"
    row = database.execute(query).fetchone()
    assert row is not None
    return Landed(int(row[0]), int(row[1]), int(row[2]), int(filesystem.du(f"{stack.bucket}/{prefix}")))
