"""From the bytes of a reply to record batches, compared with the driver's own decoder on the same bytes.

Both decode the same documents in the same run, alternating. The decoder's time is from the raw reply, including
locating the documents in it, to finished record batches; the driver's (``bson.decode_all``) ends at Python
dictionaries, which cannot be written to Parquet yet.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from statistics import median
from typing import Any

import bson
import pyarrow as pa
from bson.objectid import ObjectId
from bson.timestamp import Timestamp
from msgspec import Struct

from bench.workloads import Document, documents
from engine.core.schema import CollectionSchema, Field, grow
from engine.decode.decoder import Decoder
from engine.decode.protect import Protection
from engine.decode.schema import SchemaOptions
from engine.rawbson.offsets import document_offsets

# The share of the driver's time per document that each case may take.
TARGETS = {
    "orders": 1 / 9,
    "nested": 1 / 9,
    "wide": 1 / 4,
    "mixed": 1 / 2,
    "inserts": 1 / 4,
    "updates": 1 / 2,
    "tiny": 0.0,
    "fat": 1 / 1.5,
}
CASES = tuple(TARGETS)
# A server's reply has at most 16 MiB.
_MAX_BYTES = 16 * 2**20
_START = 1_795_000_000
# More than the bytes after the documents in a server's reply: a token, cluster times, a signature.
_TAIL = 200
_MIN_S = 0.25


class DecodeResult(Struct):
    """Microseconds per document, medians over the rounds.

    Attributes:
        protect_us: what hashing one field and masking another one costs, besides the decoder.
        share: the decoder's time as a share of the driver's; ``target``: the goal for it, 0 for none.
        rows_hash: a hash of the first rows of each batch, the same for the same documents.
    """

    case: str
    documents: int
    bytes_per_document: float
    driver_us: float
    decoder_us: float
    protect_us: float
    share: float
    target: float
    rows_hash: str


class Schemas:
    """In-memory schemas, for one decoder."""

    def __init__(self, max_fields: int = 1000) -> None:
        self._known: dict[tuple[str, str], CollectionSchema] = {}
        self._max_fields = max_fields

    def get(self, database: str, collection: str) -> CollectionSchema:
        """The collection's current schema."""
        return self._known.get((database, collection), CollectionSchema())

    def grow(self, database: str, collection: str, fields: tuple[Field, ...]) -> CollectionSchema:
        """The schema with these fields."""
        schema = self._known[database, collection] = grow(self.get(database, collection), fields, self._max_fields)
        return schema


def measure_decode(case: str, count: int, rounds: int, chunk: int = 16_384) -> DecodeResult:
    """Decode ``count`` documents of a case both ways, or as many as fit a reply."""
    raw, size = [], 0
    for document in make(case, count):
        raw.append(bson.encode(document))
        size += len(raw[-1])
        if size > _MAX_BYTES:
            break
    count = len(raw)
    reply, whole = as_array(raw), b"".join(raw)
    events = case in ("inserts", "updates")
    decoder = Decoder(Schemas(), SchemaOptions(), ("bench", case))
    decode = decoder.decode if events else decoder.decode_documents

    def by_column() -> Iterator[pa.RecordBatch]:
        offsets = document_offsets(reply, 0)
        for row in range(0, count, chunk):
            decoded = decode(reply, offsets[row : row + chunk + 1])
            assert not decoded.dead_letters
            yield from (each.batch for each in decoded.batches)

    rows = list(by_column())
    assert sum(batch.num_rows for batch in rows) == count
    digest = hashlib.sha256()
    for batch in rows:
        for column in batch.columns:
            digest.update(repr(column.slice(0, 3).to_pylist()).encode())
    first = next(make(case, 1))
    names = [name for name in (first.get("fullDocument", first)) if name != "_id"]
    protection = Protection(dict(zip((f"*.{name}" for name in names), ("hash", "mask"), strict=False)), "k" * 16)

    def protect() -> int:
        offsets = document_offsets(reply, 0)
        found = protection.events(reply, offsets) if events else protection.documents(reply, offsets, case)
        return len(found[0])

    driver, ours, protecting = [], [], []
    for _ in range(rounds):
        protecting.append(_seconds(protect))
        driver.append(_seconds(lambda: bson.decode_all(whole)))
        ours.append(_seconds(lambda: sum(batch.num_rows for batch in by_column())))
    driver_us, decoder_us = median(driver) / count * 1e6, median(ours) / count * 1e6
    return DecodeResult(
        case,
        count,
        len(whole) / count,
        driver_us,
        decoder_us,
        median(protecting) / count * 1e6,
        decoder_us / driver_us,
        TARGETS[case],
        digest.hexdigest()[:16],
    )


def _seconds(work: Callable[[], Any]) -> float:
    """The mean time of as many runs as fill a quarter of a second."""
    started, runs = time.perf_counter(), 0
    while (taken := time.perf_counter() - started) < _MIN_S:
        work()
        runs += 1
    return taken / runs


def make(case: str, count: int) -> Iterator[Document]:
    """The documents or events of a case."""
    if case == "inserts":
        return (event(number, "insert", document) for number, document in enumerate(_with_ids("orders", count)))
    if case == "updates":
        return update_mix(count)
    return _with_ids(case, count)


def update_mix(count: int) -> Iterator[Document]:
    """60 % updates (with the document looked up), 25 % inserts, 5 % replaces, 10 % deletes."""
    rng = random.Random(2)
    for number, document in enumerate(_with_ids("orders", count)):
        kind = rng.choices(("update", "insert", "replace", "delete"), (60, 25, 5, 10))[0]
        yield event(number, kind, document, rng)


def event(number: int, kind: str, document: Document, rng: random.Random | None = None) -> Document:
    """A change event in the form of a server's."""
    time, increment = _START + number // 1000, number % 1000 + 1
    uuid, key = "2B022C0100296E5A1004ED21B6581DEF41E5B19A2FCC3CBF1B8D", f"46645F696400646{document['_id']}0004"
    token = f"82{time:08X}{increment:08X}{uuid}{key.upper()}"
    made: Document = {
        "_id": {"_data": token},
        "operationType": kind,
        "clusterTime": Timestamp(time, increment),
        "wallTime": datetime(2026, 11, 23, tzinfo=UTC),
    }
    if kind != "delete":
        made["fullDocument"] = document
    made |= {"ns": {"db": "bench", "coll": "events"}, "documentKey": {"_id": document["_id"]}}
    if kind == "update":
        assert rng is not None
        changed: Document = {"status": document["status"], "total": document["total"]}
        if rng.random() < 0.3:
            changed["address.city"] = document["address"]["city"]
        if rng.random() < 0.2:
            changed[f"tags.{rng.randrange(3)}"] = rng.choice(document["tags"])
        removed = ["note"] if rng.random() < 0.1 else []
        made["updateDescription"] = {"updatedFields": changed, "removedFields": removed, "truncatedArrays": []}
    return made


def _with_ids(workload: str, count: int) -> Iterator[Document]:
    """The documents with ObjectIds as generated by one process: time, process id, counter."""
    for number, document in enumerate(documents(workload, count)):
        key = f"{_START + number // 1000:08x}{'5a17c0ffee'}{number:06x}"
        yield {"_id": ObjectId(key), **document}


def as_array(raw: Iterable[bytes]) -> bytes:
    """Documents as the elements of a BSON array, as in a reply."""
    body = b"".join(b"\x03%d\0%b" % (number, each) for number, each in enumerate(raw))
    return (len(body) + 5).to_bytes(4, "little") + body + b"\0" + bytes(_TAIL)
