"""One part at a time, to see where the time goes: encoding, uploading, slabs, the state store."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import bson
import pyarrow as pa
from msgspec import Struct
from msgspec.structs import replace

from bench.decode import Schemas, as_array, make
from bench.local import LocalStack
from engine.config.tree import S3Config, SinkConfig, StateConfig
from engine.core import records
from engine.core.ledger import WriteCommit
from engine.core.messages import Intent, ObjectName
from engine.core.position import Position
from engine.core.schema import CollectionSchema
from engine.core.specs import StreamSpec
from engine.decode.decoder import Decoder
from engine.decode.schema import SchemaOptions
from engine.encode.formats import open_file, suffix_of
from engine.quantities import Secret
from engine.rawbson.offsets import document_offsets
from engine.shared.arena import Arena
from engine.shared.slab import Content, SlabLayout, read_slab
from engine.sink.objects import Sink
from engine.state.opening import open_store
from engine.state.seam import Acquired

_CHUNK = 16_384


class PartResult(Struct):
    """The rate of one part, and its time per unit; medians over the rounds.

    Attributes:
        unit: what is counted: events, bytes, commits.
        bytes_per_unit: size of the output per unit, where that is meaningful.
        work_hash: a hash of the output.
    """

    part: str
    case: str
    unit: str
    count: int
    per_s: float
    us_per_unit: float
    bytes_per_unit: float
    work_hash: str


def _measured(part: str, case: str, unit: str, count: int, rounds: int, work: Callable[[], bytes]) -> PartResult:
    """Do the work in rounds; ``work`` returns output that proves that it was done."""
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        proof = work()
        seconds.append(time.perf_counter() - started)
    took = median(seconds)
    digest = hashlib.sha256(proof).hexdigest()[:16]
    return PartResult(part, case, unit, count, count / took, took / count * 1e6, len(proof) / count, digest)


def _batches(workload: str, count: int) -> tuple[CollectionSchema, list[pa.RecordBatch]]:
    """Insert events of a workload as record batches."""
    reply = as_array([bson.encode(each) for each in make("inserts" if workload == "orders" else workload, count)])
    schemas = Schemas()
    decoder = Decoder(schemas, SchemaOptions(), ("bench", "events"))
    decode = decoder.decode if workload == "orders" else decoder.decode_documents
    offsets = document_offsets(reply, 0)
    batches = [decode(reply, offsets[row : row + _CHUNK + 1]).batches[0].batch for row in range(0, count, _CHUNK)]
    return schemas.get("bench", "events"), batches


class _Memory:
    """A file that keeps what is written to it."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self.parts.append(data)
        return len(data)


def encode(workload: str, events: int, rounds: int) -> Iterator[PartResult]:
    """Record batches to a file's bytes: the cost and size of formats and compressions."""
    schema, batches = _batches(workload, events)
    plain = SinkConfig(url="file:///")
    for format_, compression in (
        ("parquet", "zstd"),
        ("parquet", "snappy"),
        ("parquet", "none"),
        ("json", "zstd"),
        ("csv", "zstd"),
        ("avro", "zstd"),
    ):
        config = replace(plain, format=format_, compression=compression)

        def work(config: SinkConfig = config) -> bytes:
            file = _Memory()
            encoder = open_file(f"x{suffix_of(config)}", file, schema, config, raw=False)
            encoder.write(batches)
            encoder.close({})
            return b"".join(file.parts)

        yield _measured("encode", f"{format_}, {compression}", "events", events, rounds, work)


def slab(workload: str, events: int, rounds: int) -> Iterator[PartResult]:
    """Record batches into shared memory and out of it: the cost of passing them between processes."""
    schema, batches = _batches(workload, events)
    arena = Arena.create(64 * 2**20)
    content = Content("bench", "events", 0, 0, 0, schema)

    def work() -> bytes:
        size = rows = 0
        for batch in batches:
            layout = SlabLayout([(content, batch)])
            layout.write(arena.slab(0, layout.size))
            for _, read in read_slab(arena.slab(0, layout.size)):
                rows += read.num_rows
            size += layout.size
        assert rows == events
        return bytes(size)

    yield _measured("slab", workload, "events", events, rounds, work)


def upload(stack: LocalStack, rounds: int, size: int = 64 * 2**20) -> Iterator[PartResult]:
    """Objects to the local S3 server, published in two phases: a large one in parts, and many small ones."""
    s3 = stack.s3
    config = SinkConfig(
        url=f"s3://{stack.bucket}/bench-upload",
        s3=S3Config("us-east-1", s3.endpoint_url, Secret(s3.access_key), Secret(s3.secret_key)),
    )
    sink = Sink(config)
    block = bytes(range(256)) * 4096

    def large() -> bytes:
        upload_ = sink.open("large")
        for _ in range(size // len(block)):
            upload_.write(block)
        upload_.seal()
        upload_.publish()
        return b"large"

    def small() -> bytes:
        for number in range(50):
            upload_ = sink.open(f"small-{number}")
            upload_.write(block[:40_000])
            upload_.seal()
            upload_.publish()
        return b"small"

    yield _measured("upload", f"{size >> 20} MiB in parts of 8", "bytes", size, rounds, large)
    yield _measured("upload", "40 KB each", "objects", 50, rounds, small)


def state(stack: LocalStack, rounds: int, commits: int = 300) -> Iterator[PartResult]:
    """A durable intent followed by a commit: the upper limit of segments committed per second."""
    spec = StreamSpec("s", "collection", "bench", ("events",))
    with tempfile.TemporaryDirectory() as directory:
        for case, url in (("redis", stack.valkey.url), ("sqlite", f"sqlite:///{Path(directory)}/state.db")):
            store = open_store(StateConfig(url=Secret(url), prefix="bench-state"))
            found = store.acquire("s", "bench", 60.0)
            assert isinstance(found, Acquired)

            def work(store: Any = store, lease: Any = found.lease) -> bytes:
                started = records.begin(spec, "sink", "rs0", Position(time=1))
                store.write(lease, started.put, started.remove)
                for seq in range(1, commits + 1):
                    end = Position(f"82{seq:016X}", seq)
                    intent = Intent(
                        seq, end.token, end, (ObjectName(f"key-{seq}", "bench", "events", False),), 1000
                    )
                    change = records.intended(intent, {})
                    store.write(lease, change.put, change.remove)
                    commit = records.committed(WriteCommit(seq, end, (seq,), 1000), seq * 1000)
                    store.write(lease, commit.put, commit.remove)
                fields, _ = store.read_all()["s"]
                assert records.read_record(fields).seq == commits
                return str(sorted(fields.items())).encode()

            yield _measured("state", case, "commits", commits, rounds, work)
            store.release(found.lease)
            store.close()
