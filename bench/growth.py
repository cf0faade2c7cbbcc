"""How throughput changes with what grows: documents, columns, collections, segments per minute.

Along each axis, only that changes. A point is one run on new events, up to the end of the stream; its rate is that
from the first assignment of a stream to the end of the last, without start and end of the processes.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from msgspec import Struct
from pymongo import MongoClient

from bench.local import LocalStack
from bench.measure import run
from bench.stream import Case, catching_up, config_toml, landed_in, make_events, reading_seconds

_MEMORY = "1GiB"


class GrowthResult(Struct):
    """One point.

    Attributes:
        axis, value: what grows, and how large it is here.
        events_per_s, segments_per_minute: while streams are read.
        mb_per_s: of BSON documents, 10^6 bytes.
        cpu_us: of the engine's processes per event, start and end included.
        exact: every event landed once.
    """

    axis: str
    value: int
    events: int
    events_per_s: float
    mb_per_s: float
    cpu_us: float
    pss_peak: int
    objects: int
    segments_per_minute: float
    exact: bool


class Point(Struct, frozen=True):
    """What is run: ``rows`` is the most that a segment has; 0 for the default."""

    axis: str
    value: int
    case: Case
    rows: int = 0


def points(events: int) -> Iterator[Point]:
    """All points; ``events`` is the number of those of some hundred bytes, and of larger ones there are fewer."""

    def case(workload: str = "orders", share: float = 1.0, collections: int = 1) -> Case:
        count = max(10, int(events * share))
        return Case(workload, count, 1, _MEMORY, collections=collections, readers=1, baselines=())

    for size in (100, 1000, 10_000, 100_000):
        yield Point("bytes of a document", size, case(f"text-{size}", min(1.0, 1000 / size)))
    for columns in (10, 100, 1000):
        yield Point("columns", columns, case(f"columns-{columns}", min(1.0, 50 / columns)))
    for collections in (1, 10, 100, 1000):
        yield Point("collections", collections, case(collections=collections))
    for share in (1, 10, 100, 1000):
        rows = max(1, events // share)
        yield Point("segments", share, case(), rows=rows)


def measure(stack: LocalStack, points: Iterator[Point], tell: Callable[[str], None]) -> Iterator[GrowthResult]:
    """Measure these points, one after another."""
    for point in points:
        found = _measured(stack, point)
        tell(
            f"{point.axis} {point.value:,}: {found.events_per_s:,.0f}/s, {found.mb_per_s:.0f} MB/s, "
            f"{found.cpu_us:.1f} us, {found.pss_peak / 2**20:.0f} MiB"
        )
        yield found


def _measured(stack: LocalStack, point: Point) -> GrowthResult:
    assert stack.mongo
    uri, case, database = stack.mongo.uri, point.case, f"growth_{uuid4().hex[:8]}"
    start = make_events(uri, database, case, lambda _: None)
    toml = config_toml(stack, uri, database, case, database, start)
    if point.rows:
        toml = toml.replace("[batch]\n", f"[batch]\nrows = {point.rows}\n")
    with tempfile.TemporaryDirectory() as directory:
        path, log = Path(directory) / "engine.toml", Path(directory) / "engine.log"
        path.write_text(toml)
        cost = run(catching_up(path), log=str(log))
        seconds, segments = reading_seconds(log), _commits(log)
    landed = landed_in(stack, database)
    with MongoClient[dict[str, Any]](uri) as client:
        size = client[database].command("dbStats")["dataSize"]
        client.drop_database(database)
    return GrowthResult(
        axis=point.axis,
        value=point.value,
        events=case.events,
        events_per_s=case.events / seconds,
        mb_per_s=size / seconds / 1e6,
        cpu_us=cost.cpu_s / case.events * 1e6,
        pss_peak=cost.pss_peak,
        objects=landed.objects,
        segments_per_minute=segments / seconds * 60,
        exact=landed.has_each_once(case.events),
    )


def _commits(log: Path) -> int:
    entries = (json.loads(line) for line in log.read_text().splitlines())
    return sum(each["message"] == "committed" for each in entries)
