"""What the engine is compared with, each in a process of its own.

``python -m bench.baselines scan URI DATABASE PROCESSES``
``python -m bench.baselines arrow URI DATABASE TARGET OPTIONS``
``python -m bench.baselines NAME URI DATABASE TIME,INCREMENT EVENTS LOOKUP [PREFIX OPTIONS | PARTS]``
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from typing import Any

from bson import ObjectId
from bson.timestamp import Timestamp
from pymongo import MongoClient

COLLECTION = "events0"
_ROWS = 20_000

Event = dict[str, Any]


def drain(uri: str, database: str, start: Timestamp, events: int, lookup: bool, parts: int = 1) -> None:
    """Read the stream as raw replies and discard them: the server's limit.

    Args:
        parts: the number of streams, by hash of ``_id``, each in a thread of its own.
    """
    from engine.core.position import Position, make_time
    from engine.core.specs import StreamSpec
    from engine.source.change_stream import ChangeStream
    from engine.source.session import connect

    full_document = "update_lookup" if lookup else "default"
    seen = [0] * parts

    def read(part: int) -> None:
        spec = StreamSpec(
            f"drain{part}",
            "collection",
            database,
            (COLLECTION,),
            part=part,
            parts=parts,
            full_document=full_document,
        )
        stream = ChangeStream(connect(uri), spec, Position(time=make_time(start.time, start.inc)))
        while sum(seen) < events:
            seen[part] += len(stream.next())
        stream.close()

    with ThreadPoolExecutor(parts) as pool:
        list(pool.map(read, range(parts)))


def watched(uri: str, database: str, start: Timestamp, events: int, lookup: bool) -> Iterator[Event]:
    """The simplest loop over a change stream."""
    collection = MongoClient[Event](uri)[database][COLLECTION]
    full_document = "updateLookup" if lookup else None
    with collection.watch(full_document=full_document, start_at_operation_time=start) as stream:
        for number, event in enumerate(stream, 1):
            yield event
            if number == events:
                return


def usual(
    uri: str, database: str, start: Timestamp, events: int, lookup: bool, prefix: str, options: dict[str, Any]
) -> None:
    """The usual Python way: ``watch()``, ``Table.from_pylist``, ``write_table``, s3fs."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import s3fs

    filesystem = s3fs.S3FileSystem(**options)
    rows: list[Event] = []
    for seen, event in enumerate(watched(uri, database, start, events, lookup), 1):
        row = {name: _plain(value) for name, value in (event.get("fullDocument") or {}).items()}
        rows.append(row | {"op": event["operationType"], "token": event["_id"]["_data"]})
        if len(rows) == _ROWS or seen == events:
            with filesystem.open(f"{prefix}/{seen:012}.parquet", "wb") as file:
                pq.write_table(pa.Table.from_pylist(rows), file, compression="zstd", compression_level=3)
            rows = []


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, ObjectId) else value


def scan(uri: str, database: str, processes: int) -> None:
    """Read the collection as raw replies, each process a part of it, and discard them."""
    client = MongoClient[Event](uri)
    sample: list[Event] = [{"$sample": {"size": 1000}}, {"$project": {"_id": 1}}, {"$sort": {"_id": 1}}]
    keys = [each["_id"] for each in client[database][COLLECTION].aggregate(sample)] if processes > 1 else []
    edges = [None, *(keys[len(keys) * part // processes] for part in range(1, processes)), None]
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        ranges = pairwise(edges)
        list(pool.map(_scan_part, *zip(*((uri, database, *each) for each in ranges), strict=True)))


def _scan_part(uri: str, database: str, lower: Any, upper: Any) -> None:
    from bson.codec_options import CodecOptions
    from bson.raw_bson import RawBSONDocument

    client = MongoClient[Event](uri)
    raw = CodecOptions(document_class=RawBSONDocument)
    bounds = {name: {"_id": key} for name, key in (("min", lower), ("max", upper)) if key is not None}
    command: Event = {"find": COLLECTION, "hint": {"_id": 1}, **bounds}
    with client.start_session() as session:
        while True:
            reply = client[database].command(command, session=session, codec_options=raw)
            if not (cursor := reply["cursor"]["id"]):
                return
            command = {"getMore": cursor, "collection": COLLECTION}


def arrow(uri: str, database: str, target: str, options: dict[str, Any]) -> None:
    """``find_arrow_all``, ``write_table``, s3fs."""
    import pyarrow.parquet as pq
    import s3fs
    from pymongoarrow.api import find_arrow_all

    collection = MongoClient[Event](uri)[database][COLLECTION]
    table = find_arrow_all(collection, {})
    table = (
        table.set_column(0, "_id", table.column("_id").cast("binary")) if "_id" in table.column_names else table
    )
    with s3fs.S3FileSystem(**options).open(target, "wb") as file:
        pq.write_table(table, file, compression="zstd", compression_level=3)


def main() -> None:
    """Run one."""
    if sys.argv[1] == "scan":
        scan(sys.argv[2], sys.argv[3], int(sys.argv[4]))
        return
    if sys.argv[1] == "arrow":
        uri, database, target, options = sys.argv[2:]
        arrow(uri, database, target, json.loads(options))
        return
    name, uri, database, start, events, lookup, *rest = sys.argv[1:]
    time, increment = map(int, start.split(","))
    arguments = uri, database, Timestamp(time, increment), int(events), lookup == "lookup"
    if name == "drain":
        drain(*arguments)
    elif name == "drains":
        drain(*arguments, parts=int(rest[0]))
    elif name == "watch":
        for _ in watched(*arguments):
            pass
    else:
        usual(*arguments, rest[0], json.loads(rest[1]))


if __name__ == "__main__":
    main()
