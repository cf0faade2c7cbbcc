"""Segments release what they no longer need: encoders, uploads, rows."""

from __future__ import annotations

import gc
import os
import weakref
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from msgspec.structs import replace

from bench.local import LocalStack
from engine.config import Config, Secret, SinkConfig
from engine.config.tree import SourceConfig
from engine.core import messages as msg
from engine.core.position import Position
from engine.core.schema import CollectionSchema, DataType, Field
from engine.decode.schema import METADATA_COLUMNS
from engine.errors import TransientError
from engine.processes.builds import SegmentBuild
from engine.shared.slab import Content
from engine.sink.objects import PART_SIZE, Sink
from tests.sink.test_objects import s3_config

SCHEMA = CollectionSchema(1, (Field("_id", DataType("string"), 1), Field("text", DataType("string"), 1)))


CONTENT = Content("shop", "orders", 0, 0, 0, SCHEMA)


FORMATS = ["parquet", "avro", "bson", "csv", "json"]


KINDS = ["file", "s3 small", "s3 large"]


def rows(count: int, size: int) -> pa.RecordBatch:
    """Events with this much incompressible text each."""
    types = {name: METADATA_COLUMNS[name] for name in ("_cdc_token", "_cdc_cluster_time", "_cdc_raw")}
    texts = [os.urandom(-(-size // 2)).hex() for _ in range(count)]
    columns = [
        pa.array([f"82{n:030}" for n in range(count)], types["_cdc_token"]),
        pa.array([1_777_593_600_000] * count, types["_cdc_cluster_time"]),
        pa.array([text.encode() for text in texts], types["_cdc_raw"]),
        pa.array(map(str, range(count)), pa.string()),
        pa.array(texts, pa.string()),
    ]
    return pa.record_batch(columns, names=[*types, "_id", "text"])


def intent(seq: int, count: int) -> msg.Intent:
    return msg.Intent(seq, "a", Position("b", 1), (), count)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=FORMATS)
def config(request: pytest.FixtureRequest, kind: str, stack: LocalStack, tmp_path: Path, unique: str) -> Config:
    place = SinkConfig(url=f"file://{tmp_path}/lake")
    if kind.startswith("s3"):
        place = s3_config(stack, f"s3://{stack.bucket}/{unique}")
    sink = replace(place, format=request.param, compression="none")
    return Config(source=SourceConfig(uri=Secret("mongodb://x"), database="shop"), sink=sink)


def built(config: Config, kind: str, seq: int = 1) -> tuple[SegmentBuild, list[weakref.ref[Any]]]:
    """A segment with one object and one written row group, and the objects that it must release."""
    segment = SegmentBuild("s", seq, Sink(config.sink), config)
    batch = rows(20, PART_SIZE // 10 if kind == "s3 large" else 100)
    segment.add(CONTENT, batch)
    (build,) = segment.objects.values()
    build.flush()
    segment.add(CONTENT, batch)  # and a second one is pending
    things = [segment, build, build.upload, build._outflow, build._file, batch]
    return segment, [weakref.ref(each) for each in things if each is not None]


def still_there(references: list[weakref.ref[Any]]) -> list[str]:
    gc.collect()
    return [type(each()).__name__ for each in references if each() is not None]


def test_published_segments_release_everything(config: Config, kind: str) -> None:
    segment, things = built(config, kind)
    segment.seal(msg.Seal("s", 1, intent(1, 40)), "test")
    for build in segment.objects.values():
        build.upload.publish()
        assert build.upload.held == 0
    del segment, build
    assert still_there(things) == []


@pytest.mark.parametrize("sealed", [False, True])
def test_abandoned_segments_release_everything_and_write_no_more(config: Config, kind: str, sealed: bool) -> None:
    """A dropped encoder still writes its footer: nowhere, and without an error."""
    segment, things = built(config, kind)
    if sealed:
        segment.seal(msg.Seal("s", 1, intent(1, 40)), "test")
    segment.discard()
    (build,) = segment.objects.values()
    assert build.upload.held == 0
    assert build.pending_bytes == 0
    del segment, build
    assert still_there(things) == []


def test_failed_segments_release_everything(config: Config, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error describes the failure, and does not keep the data alive."""
    segment, things = built(config, kind)
    (build,) = segment.objects.values()

    def fail(_: bytes) -> int:
        raise TransientError("upload", "no")

    monkeypatch.setattr(build.upload, "write", fail)
    with pytest.raises(TransientError):
        segment.seal(msg.Seal("s", 1, intent(1, 40)), "test")
    segment.discard()
    monkeypatch.undo()
    del segment, build, fail
    assert still_there(things) == []


def test_many_batches_of_a_row_are_held_as_one(tmp_path: Path) -> None:
    """With many columns, a row in a batch of its own takes a hundred times what its values do."""
    columns = {f"c{n}": [n] for n in range(300)}
    fields = tuple(Field(name, DataType("int64"), 1) for name in columns)
    content = Content("shop", "orders", 0, 0, 0, CollectionSchema(1, fields))
    sink = SinkConfig(url=f"file://{tmp_path}", partition_by="collection")
    build = SegmentBuild(
        "shop.orders", 1, Sink(sink), Config(source=SourceConfig(uri=Secret("mongodb://h")), sink=sink)
    )
    most = 0
    for number in range(400):
        batch = pa.record_batch({"_cdc_token": [f"82{number:030}"], **columns, "c7": [number]})
        build.add(content, batch if number % 3 else batch.drop_columns(["c8"]))
        (held,) = build.pending()
        most = max(most, held.pending_bytes)
    assert most < 8 * 2**20
    (held,) = build.pending()
    assert held.pending_bytes > sum(each.nbytes for each in held._pending) + 300 * 1000
    found = pa.concat_tables([pa.table(each) for each in held._pending], promote_options="default")
    assert found.column("c7").to_pylist() == list(range(400))
    assert found.column("c8").to_pylist() == [8 if number % 3 else None for number in range(400)]
    build.discard()
    assert not list(build.pending())
