"""What the engine is measured beside, each as a process of its own.

``python -m bench.baselines NAME URI DATABASE TIME,INCREMENT EVENTS LOOKUP [PREFIX OPTIONS | PARTS]``
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bson import ObjectId
from bson.timestamp import Timestamp
from pymongo import MongoClient

COLLECTION = "events0"
_ROWS = 20_000

Event = dict[str, Any]


def drain(uri: str, database: str, start: Timestamp, events: int, lookup: bool, parts: int = 1) -> None:
    """Read the stream as raw replies and do nothing with them: the server's limit.

    Args:
        parts: into so many streams by hash of ``_id``, each in a thread of its own.
    """
    from engine.core.messages import StreamSpec
    from engine.core.position import Position, make_time
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
    """The loop that everybody writes first."""
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


def main() -> None:
    """Run one."""
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
