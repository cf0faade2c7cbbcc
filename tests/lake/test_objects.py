"""Objects of a lake in every layout, and their footers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import bson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from msgspec.structs import replace

from bench.local import LocalStack
from engine.config import Config, Secret, SinkConfig
from engine.config.tree import SourceConfig
from engine.core import messages as msg
from engine.core.naming import DIRECTORIES, OLD_DIRECTORIES, TABLE_DIRECTORIES, Directories, Partitioning
from engine.core.position import Position
from engine.core.schema import CollectionSchema, DataType, Field
from engine.core.schemas import unpacked_schema
from engine.errors import ConfigError
from engine.lake.objects import Footer, LakeObject, Objects, UnreadableError, read_footer
from engine.processes.builds import SegmentBuild
from engine.shared.slab import Content
from engine.sink.objects import Sink
from tests.sink.test_objects import s3_config

SCHEMA = CollectionSchema(3, (Field("_id", DataType("string"), 1),))
HOUR_MS = 3_600_000
TIME = (1_777_618_800 << 32) + 1
REPLACED = (msg.Replaced("shop.orders", 5),)
FIRST, LAST = (f"82{TIME + n:016X}2B042C01002B6E5A1004{n:032X}46{'5F6964':0<8}0004" for n in (0, 1))


def config(sink: SinkConfig) -> Config:
    return Config(source=SourceConfig(uri=Secret("mongodb://x"), database="shop"), sink=sink)


def publish(
    settings: Config,
    stream: str,
    seq: int,
    collections: Iterable[str],
    directories: Directories = DIRECTORIES,
    *,
    letters: bool = False,
    store: Sink | None = None,
) -> None:
    """A segment with two rows an hour apart of each of these collections."""
    segment = SegmentBuild(stream, seq, store or Sink(settings.sink), settings, directories)
    for name in collections:
        times = pa.array([(TIME >> 32) * 1000, (TIME >> 32) * 1000 + HOUR_MS], pa.timestamp("ms", "UTC"))
        tokens = pa.array([FIRST, LAST])
        rows = pa.record_batch([tokens, times, pa.array(["1", "2"])], ["_cdc_token", "_cdc_cluster_time", "_id"])
        segment.add(Content("shop", name, 0, 0, 0, SCHEMA), rows)
    if letters:
        rows = pa.record_batch([pa.array([b"\5\0\0\0\0"])], ["_cdc_raw"])
        segment.add(Content("shop", "orders", 0, 0, 0, SCHEMA, dead_letters=True), rows)
    intent = msg.Intent(seq, FIRST, Position(LAST, TIME + 1), (), 2)
    segment.seal(msg.Seal(stream, 1, intent, Position("", TIME - 1), 2, REPLACED), "0.3")
    for build in segment.objects.values():
        build.upload.publish()


@pytest.fixture(params=["file", "s3"])
def sink(request: pytest.FixtureRequest, tmp_path: Path, unique: str) -> SinkConfig:
    if request.param == "file":
        return SinkConfig(url=f"file://{tmp_path}/lake")
    stack: LocalStack = request.getfixturevalue("stack")
    return s3_config(stack, f"s3://{stack.bucket}/{unique}")


@pytest.mark.parametrize(
    ("partition_by", "directories"),
    [
        *((each, of) for each in ("hour", "day", "collection", "none") for of in (DIRECTORIES, OLD_DIRECTORIES)),
        ("table", TABLE_DIRECTORIES),
    ],
)
def test_every_layout(tmp_path: Path, partition_by: Partitioning, directories: Directories) -> None:
    settings = config(SinkConfig(url=f"file://{tmp_path}", partition_by=partition_by))
    sharded = config(replace(settings.sink, prefix_shards=4))
    publish(settings, "shop.orders", 1, ["orders"], directories)
    publish(sharded, "shop.orders", 2, ["orders"], directories, letters=True)
    publish(settings, "shop", 1, ["orders", "orders.old"], directories)
    publish(sharded, "deployment~", 1, ["orders", "other"], directories)
    for foreign in ("_headrace/streams/x.json", "_headrace_probe", "notes.txt", "cdc_database=shop/x.parquet"):
        (tmp_path / foreign).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / foreign).write_text("no")

    objects = Objects(settings.sink)
    parts = 2 if partition_by == "hour" else 1
    found = [(each.parts.stream, each.parts.seq) for each in objects.all()]
    assert sorted(set(found)) == [("deployment~", 1), ("shop", 1), ("shop.orders", 1), ("shop.orders", 2)]
    assert len(found) == 6 * parts
    assert [each.parts.seq for each in objects.all(dead_letters=True) if each.parts.dead_letter] == [2]
    assert sorted({each.parts.seq for each in objects.of_stream("shop.orders")}) == [1, 2]

    of_orders = list(objects.of_collection("shop", "orders"))
    assert len({each.key for each in of_orders}) == len(of_orders) == 4 * parts
    rows = {
        name: sum(footer.rows for _, footer in read(objects, objects.of_collection("shop", name)))
        for name in ("orders", "orders.old", "other", "old", "order")
    }
    assert rows == {"orders": 8, "orders.old": 2, "other": 2, "old": 0, "order": 0}


def read(objects: Objects, some: Iterable[LakeObject]) -> list[tuple[LakeObject, Footer]]:
    found = []
    for each, footer in objects.footers(some):
        assert isinstance(footer, Footer), footer
        found.append((each, footer))
    return found


def test_a_footer_says_what_a_segment_was_published_as(sink: SinkConfig) -> None:
    settings = config(sink)
    publish(settings, "shop", 7, ["orders", "other"], letters=True)
    objects = Objects(sink)
    for each, footer in read(objects, objects.all(dead_letters=True)):
        assert (footer.stream, footer.seq) == (each.parts.stream, each.parts.seq) == ("shop", 7)
        assert (footer.first_token, footer.last_token) == (FIRST, LAST)
        assert (footer.rows, footer.rows_written, footer.objects) == (1, 1, 5)
        assert (footer.line, footer.schema_version, footer.version) == (2, 3, "0.3")
        assert (footer.after, footer.replaced) == (Position("", TIME - 1), REPLACED)
        assert (footer.database, footer.collection) == ("shop", each.key.partition("collection=")[2].split("/")[0])
        assert footer.schema is not None
        assert unpacked_schema(footer.schema).version == 3


def test_many_footers_come_in_order(sink: SinkConfig) -> None:
    settings = config(replace(sink, partition_by="collection"))
    store = Sink(settings.sink)
    for seq in range(1, 41):
        publish(settings, "shop.orders", seq, ["orders"], store=store)
    objects = Objects(sink)
    found = read(objects, objects.of_stream("shop.orders"))
    assert [footer.seq for _, footer in found] == [each.parts.seq for each, _ in found] == list(range(1, 41))


def test_footers_of_version_0_2() -> None:
    """Without the numbers of objects and rows; the token with what the server needs beside ``_data``."""
    whole = bson.encode({"_data": LAST, "_typeBits": b"\x82"}).hex()
    written = {
        "headrace.stream": "shop.orders",
        "headrace.seq": "7",
        "headrace.first_token": bson.encode({"_data": FIRST}).hex(),
        "headrace.last_token": whole,
        "headrace.schema_version": "1",
        "headrace.version": "0.2.0",
    }
    footer = read_footer({name.encode(): value.encode() for name, value in written.items()}, 3)
    expected = Footer("shop.orders", 7, FIRST, f"{LAST}:{whole}", 3, schema_version=1, version="0.2.0")
    assert footer == expected
    split = written | {"headrace.stream": "shop.orders~read1f-000001", "headrace.first_token": "1:05", "x": "y"}
    footer = read_footer({name.encode(): value.encode() for name, value in split.items()}, 3)
    assert (footer.first_token, footer.last_token) == ("1:05", whole)


def test_an_object_that_is_not_ours_or_damaged_is_told(sink: SinkConfig) -> None:
    settings = config(replace(sink, partition_by="collection"))
    publish(settings, "shop.orders", 1, ["orders"])
    store = Sink(sink)
    (good,) = store.keys("cdc_")
    data = store.read(good, 0, 10**9)
    foreign = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": [1]}), foreign)
    for seq, content in enumerate((b"", data[:-9], data[:-20] + b"x" * 12 + data[-8:], foreign.getvalue()), 2):
        upload = store.open(good.replace("-000000000001", f"-{seq:012d}"))
        upload.write(bytes(content))
        upload.seal()
        upload.publish()
    objects = Objects(sink)
    answers = [footer for _, footer in objects.footers(objects.all())]
    assert isinstance(answers[0], Footer)
    assert [type(each) for each in answers[1:]] == [UnreadableError] * 4


def test_an_object_that_is_gone_is_the_stores_error(sink: SinkConfig) -> None:
    settings = config(sink)
    publish(settings, "shop.orders", 1, ["orders"])
    objects = Objects(sink)
    there = next(objects.all())
    gone = LakeObject(there.key.replace("-000000000001", "-000000000002"), there.parts, there.size)
    with pytest.raises(ConfigError):
        objects.footer(gone)
