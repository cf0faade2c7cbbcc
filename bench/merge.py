"""Merges into a mirror, in a process of its own: rows per second, what is written again, and memory.

The changelog is written by the benchmark as the engine would: objects of ``SEGMENT`` rows. Each step adds one kind
of change, commits it to the changelog table, and merges it.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Struct

from bench.local import LocalStack
from engine.config import load
from engine.config.tree import Config
from engine.core.naming import TABLE_DIRECTORIES, object_key, partition_of
from engine.lake.objects import Objects
from engine.sink.objects import Sink
from engine.tables.follower import Tables, data_file
from engine.tables.formats import tables_of
from engine.tables.mirror import Mirror
from engine.tables.table import add

SEGMENT = 250_000
_TIME = 1_800_000_000 << 32


class MergeResult(Struct):
    """One merge.

    Attributes:
        documents: in the mirror afterwards.
        changed: rows of the changelog that were merged.
        rows_per_s: of these, the commit included.
        written_per_change: bytes of the new files, for each of these rows.
        rewritten: the share of the mirror's rows that was written again.
        files: of the mirror afterwards.
        uss_peak: the unique memory of the process meanwhile, in bytes.
    """

    format: str
    case: str
    documents: int
    changed: int
    seconds: float
    rows_per_s: float
    written_per_change: float
    rewritten: float
    files: int
    uss_peak: int


def measure(stack: LocalStack, format_: str, documents: int, tell: Callable[[str], None]) -> Iterator[MergeResult]:
    """All steps with one format."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "engine.toml"
        path.write_text(config_of(stack, format_, directory))
        rng = random.Random(1)
        few = max(1, documents // 100)
        steps = {
            "all": range(documents),
            "1 % at random": sorted(rng.sample(range(documents), few)),
            "latest 1 %": range(documents - few, documents),
            "all again": range(documents),
        }
        segments = 0
        for number, (case, keys) in enumerate(steps.items()):
            tell(f"{format_}: writing {len(keys):,} rows")
            for at in range(0, len(keys), SEGMENT):
                segments += 1
                _land(path, segments, keys[at : at + SEGMENT], number)
            ours, theirs = multiprocessing.get_context("spawn").Pipe()
            process = multiprocessing.get_context("spawn").Process(target=_merge, args=(path, theirs))
            process.start()
            theirs.close()
            result = _watched(process.pid or 0, ours, format_, case, documents, len(keys))
            process.join()
            tell(f"{format_}: {case}: {result.seconds:.1f} s, {result.uss_peak / 2**20:.0f} MiB")
            yield result


def _watched(pid: int, done: Connection, format_: str, case: str, documents: int, changed: int) -> MergeResult:
    process, peak = psutil.Process(pid), 0
    while not done.poll(0.1):
        peak = max(peak, process.memory_full_info().uss)
    seconds, written, size, files = json.loads(done.recv_bytes())
    return MergeResult(
        format_,
        case,
        documents,
        changed,
        seconds,
        changed / seconds,
        size / changed,
        written / documents,
        files,
        peak,
    )


def _merge(path: Path, done: Connection) -> None:
    pa.set_memory_pool(pa.system_memory_pool())
    config = load(path)
    tables, objects = tables_of(config), Objects(config.sink)
    changes, table = tables.open("bench", "docs_changes", by_day=True), tables.open("bench", "docs", by_day=False)
    started = time.perf_counter()
    merged = Mirror(
        Sink(config.sink), config.sink, objects, changes, table, "bench/docs/", lambda: None, {}
    ).merge()
    seconds = time.perf_counter() - started
    table.coverage()
    done.send_bytes(json.dumps([seconds, merged.written, merged.bytes, len(table.files())]).encode())


def _land(path: Path, seq: int, keys: Sequence[int], version: int) -> None:
    config = load(path)
    land(config, Objects(config.sink), tables_of(config), seq, keys, version)


def land(config: Config, objects: Objects, tables: Tables, seq: int, keys: Sequence[int], version: int) -> None:
    """One segment of the changelog, in the lake and in its table.

    Args:
        keys: of the documents.
        version: 0 if these are new.
    """
    time_ = _TIME + (seq << 32)
    rows = _rows(keys, seq, time_, version)
    key = object_key(
        "bench.docs",
        seq,
        "bench",
        "docs",
        partition_of(time_, "table", TABLE_DIRECTORIES),
        directories=TABLE_DIRECTORIES,
    )
    upload = Sink(config.sink).open(key)
    buffer = pa.BufferOutputStream()
    pq.write_table(rows.replace_schema_metadata({"headrace.schema_version": "1"}), buffer, compression="zstd")
    upload.write(buffer.getvalue().to_pybytes())
    upload.seal()
    upload.publish()
    found = [data_file(objects, each) for each in objects.below(key)]
    add(tables.open("bench", "docs_changes", by_day=True), [each for each in found if each])


def _rows(keys: Sequence[int], seq: int, time_: int, version: int) -> pa.Table:
    count = len(keys)
    rng = np.random.default_rng(seq)
    ids = [f"{1_700_000_000 + key // 1000:08x}{key:016x}" for key in keys]
    times = time_ + np.arange(count, dtype=np.int64)
    return pa.table(
        {
            "_cdc_op": pa.array(["insert" if version == 0 else "replace"] * count),
            "_cdc_token": [f"82{each:016X}2B02" for each in times],
            "_cdc_cluster_time": pa.array((times >> 32) * 1000, pa.timestamp("ms", "UTC")),
            "_cdc_timestamp": times,
            "_cdc_stream": pa.array(["bench.docs"] * count),
            "_cdc_seq": pa.array(np.full(count, seq, np.int64)),
            "_cdc_key": [f'{{"_id":{{"$oid":"{each}"}}}}' for each in ids],
            "_cdc_id": [f'{{"$oid":"{each}"}}' for each in ids],
            "_cdc_has_document": pa.array([True] * count),
            "_cdc_update": pa.nulls(count, pa.string()),
            "_id": ids,
            "customer": rng.integers(0, 10**6, count),
            "status": pa.array(np.array(["new", "paid", "sent", "back"])[rng.integers(0, 4, count)]),
            "amount": rng.integers(0, 10**5, count) / 100,
            "items": [f"item {each}" for each in rng.integers(0, 10**4, count)],
            "note": [f"{each:032x}" for each in rng.integers(0, 2**62, count)],
        }
    )


def config_of(stack: LocalStack, format_: str, directory: str) -> str:
    """A configuration with tables in this format, and a state in this directory."""
    s3 = stack.s3
    catalog = (
        f'catalog = {{ type = "sql", uri = "sqlite:///{directory}/catalog.db" }}' if format_ == "iceberg" else ""
    )
    return f"""\
[source]
uri = "mongodb://localhost"
database = "bench"
collections = ["docs"]
[sink]
url = "s3://{stack.bucket}/merge-{format_}"
[sink.s3]
endpoint_url = "{s3.endpoint_url}"
access_key = "{s3.access_key}"
secret_key = "{s3.secret_key}"
region = "us-east-1"
[table]
format = "{format_}"
{catalog}
[mirror]
enabled = true
[state]
url = "sqlite:///{directory}/state.db"
"""
