"""How far streams have got, by the objects of a lake."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from msgspec.structs import replace

from engine.config import Config, SinkConfig
from engine.config.tree import SourceConfig
from engine.core import messages as msg
from engine.core.position import Position, make_time, position_at
from engine.core.schema import CollectionSchema, DataType, Field
from engine.errors import ConfigError
from engine.lake.standing import look
from engine.processes.builds import SegmentBuild
from engine.quantities import Secret
from engine.shared.slab import Content
from engine.sink.objects import Sink

SECONDS = 1_777_618_800
BEGUN = SECONDS * 100 + 1
STREAM = "shop~1f3a5c7e9b2d"
ODD = "a/b ~c%"


def at(number: int) -> Position:
    return position_at(f"82{make_time(SECONDS, number):016X}2B042C0100296E5A1004{'0' * 32}46645F696400000004")


def schema(version: int) -> CollectionSchema:
    return CollectionSchema(version, tuple(Field(f"f{n}", DataType("string"), n) for n in range(version)))


def publish(
    sink: SinkConfig, number: int, collections: dict[str, int], stream: str = STREAM, op: str = "insert"
) -> None:
    """A segment with a row of each collection, under this version of its schema; none for version 0."""
    config = Config(source=SourceConfig(uri=Secret("mongodb://x"), database="shop"), sink=sink)
    segment = SegmentBuild(stream, BEGUN + number, Sink(sink), config)
    empty = []
    for name, version in collections.items():
        if not version:
            empty.append(msg.ObjectName(key_of(stream, number, name), "shop", name))
            continue
        values = {
            "_cdc_op": pa.array([op]),
            "_cdc_timestamp": pa.array([7 << 32]),
            "_cdc_token": pa.array([at(number).token]),
            "_cdc_cluster_time": pa.array([SECONDS * 1000], pa.timestamp("ms", "UTC")),
        }
        rows = pa.RecordBatch.from_pydict(values)
        segment.add(Content("shop", name, 0, 0, 0, schema(version)), rows)
    start = at(number - 1) if number else Position("", at(0).time)
    intent = msg.Intent(BEGUN + number, at(number).token, at(number), tuple(empty), 1)
    segment.seal(msg.Seal(stream, 1, intent, start), "0.3")
    for build in segment.objects.values():
        build.upload.publish()


def key_of(stream: str, number: int, collection: str) -> str:
    directory = f"cdc_database=shop/cdc_collection={collection}/cdc_date=2026-05-01/cdc_hour=07"
    return f"{directory}/{stream}-{BEGUN + number:012d}.parquet"


def files(directory: Path, number: int) -> list[Path]:
    return sorted(directory.rglob(f"*-{BEGUN + number:012d}.parquet"))


@pytest.fixture
def sink(tmp_path: Path) -> SinkConfig:
    return SinkConfig(url=f"file://{tmp_path}/lake")


def test_an_incomplete_segment_and_the_schemas(sink: SinkConfig, tmp_path: Path) -> None:
    publish(sink, 0, {"orders": 2, "quiet": 5})
    for number in range(1, 8):
        publish(sink, number, {"orders": 3, ODD: 1})
    publish(sink, 8, {"orders": 0, ODD: 1})  # a replay for which there were no rows of orders
    files(tmp_path, 6)[0].unlink()
    found = look(sink)
    (standing,) = found.streams.values()
    assert (standing.stream, standing.newest) == (STREAM, BEGUN + 8)
    assert (standing.rebuilt.seq, standing.rebuilt.position) == (BEGUN + 5, at(5))
    assert [intent.seq for intent in standing.rebuilt.intents] == [BEGUN + 6, BEGUN + 7, BEGUN + 8]
    names = {(name.database, name.collection) for name in standing.rebuilt.intents[1].objects}
    assert names == {("shop", "orders"), ("shop", ODD)}
    versions = {"schema:shop.orders": 3, f"schema:shop.{ODD}": 1, "schema:shop.quiet": 5}
    assert standing.schemas == versions
    assert found.schemas == {name: schema(version) for name, version in versions.items()}


def test_files_of_version_0_2(sink: SinkConfig, tmp_path: Path) -> None:
    """Their footers say less: the rows say whose they are, and the columns the schema."""
    for number in range(6):
        publish(sink, number, {"orders": 2})
    for path in (tmp_path / "lake").rglob("*.parquet"):
        with pq.ParquetFile(path) as file:
            table, written = file.read(), file.metadata.metadata
        known = ("stream", "seq", "first_token", "last_token", "schema_version", "version")
        kept = {name: value for name, value in written.items() if name.decode()[9:] in known}
        for name, value in (("_cdc_database", "shop"), ("_cdc_collection", "orders")):
            at_ = table.schema.get_field_index(name)
            table = table.set_column(at_, name, pa.array([value]))
        pq.write_table(table.replace_schema_metadata(kept), path)
    found = look(sink)
    standing = found.streams[STREAM]
    assert (standing.rebuilt.seq, standing.rebuilt.position) == (BEGUN + 1, at(1))
    assert len(standing.rebuilt.intents) == 4
    assert standing.rebuilt.intents[0].objects[0].collection == "orders"
    assert [field.name for field in found.schemas["schema:shop.orders"].fields] == ["f0", "f1"]


def test_another_layout_is_refused_if_anything_must_be_replayed(sink: SinkConfig, tmp_path: Path) -> None:
    publish(sink, 0, {"orders": 1, "items": 1})
    others = replace(sink, prefix_shards=4), replace(sink, partition_by="day"), replace(sink, partition_by="none")
    for other in others:
        assert not look(other).streams[STREAM].rebuilt.intents
    files(tmp_path, 0)[0].unlink()
    assert look(sink).streams[STREAM].rebuilt.intents
    for other in others:
        with pytest.raises(ConfigError, match="has another layout than"):
            look(other)


def test_without_footers_there_is_nothing_to_rebuild_from(sink: SinkConfig) -> None:
    with pytest.raises(ConfigError, match="Only Parquet files have footers"):
        look(replace(sink, format="json"))
    publish(replace(sink, format="json", compression="none"), 0, {"orders": 1})
    with pytest.raises(ConfigError, match="Only Parquet files have footers"):
        look(sink)


def test_a_damaged_footer_is_told(sink: SinkConfig, tmp_path: Path) -> None:
    publish(sink, 0, {"orders": 1})
    (path,) = files(tmp_path, 0)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ConfigError, match="cannot be read"):
        look(sink)


def test_the_mark_says_that_a_backfill_was_finished(sink: SinkConfig) -> None:
    for number, plan in enumerate(("a1", "b2")):
        publish(sink, number, {"orders": 2}, f"shop.orders~read{plan}-000000", "read")
        publish(sink, number, {"orders": 2}, f"shop.orders~read{plan}-000001", "read")
    publish(sink, 0, {"orders": 2}, "shop.orders~reada1-000002", "loaded")
    found = look(sink)
    assert not found.streams
    assert {plan: (each.splits, each.loaded) for plan, each in found.backfills.items()} == {
        "a1": (2, 7 << 32),
        "b2": (2, None),
    }
    assert found.schemas["schema:shop.orders"].version == 2
