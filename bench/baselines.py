"""What the engine is measured beside, each as a process of its own: ``NAME URI TIME,INCREMENT EVENTS``."""

from __future__ import annotations

import sys
from typing import Any

from bson.timestamp import Timestamp
from pymongo import MongoClient

from engine.core.messages import StreamSpec
from engine.core.position import Position, make_time
from engine.source.change_stream import ChangeStream
from engine.source.session import connect

DATABASE, COLLECTION = "bench", "events"


def drain(uri: str, start: Timestamp, events: int) -> None:
    """Read the stream as raw replies and do nothing with them: the server's limit."""
    spec = StreamSpec("drain", "collection", DATABASE, (COLLECTION,), full_document="update_lookup")
    stream = ChangeStream(connect(uri), spec, Position(time=make_time(start.time, start.inc)))
    seen = 0
    while seen < events:
        seen += len(stream.next())
    stream.close()


def watch(uri: str, start: Timestamp, events: int) -> None:
    """The loop that everybody writes first."""
    collection = MongoClient[dict[str, Any]](uri)[DATABASE][COLLECTION]
    seen = 0
    with collection.watch(full_document="updateLookup", start_at_operation_time=start) as stream:
        for _ in stream:
            seen += 1
            if seen == events:
                break


def main() -> None:
    """Run one."""
    name, uri, start, events = sys.argv[1:]
    time, increment = map(int, start.split(","))
    {"drain": drain, "watch": watch}[name](uri, Timestamp(time, increment), int(events))


if __name__ == "__main__":
    main()
