"""Avro files hold the values of their columns, as fastavro reads them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from decimal import Context, Decimal
from typing import Any, cast
from unittest import mock

import fastavro
import pyarrow as pa
from fastavro.read import LOGICAL_READERS
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engine.encode.avro import AvroFile, avro_schema
from tests.encode import columns
from tests.encode.test_formats import Collected


def expected(value: Any, type_: pa.DataType) -> Any:
    """What fastavro reads, but for the names of members, which Avro restricts."""
    if value is None:
        return None
    if pa.types.is_struct(type_):
        return {number: expected(value[field.name], field.type) for number, field in enumerate(type_)}
    if pa.types.is_list(type_):
        return [expected(each, type_.value_type) for each in value]
    if pa.types.is_decimal(type_):
        return Decimal(value).scaleb(-type_.scale, Context(prec=40))
    return value


def numbered(value: Any) -> Any:
    """A value with the numbers of members in place of their names."""
    if isinstance(value, dict):
        return {number: numbered(each) for number, each in enumerate(value.values())}
    return [numbered(each) for each in value] if isinstance(value, list) else value


def written(schema: pa.Schema, batches: list[pa.RecordBatch], codec: str = "null") -> bytes:
    file = Collected()
    encoder = AvroFile(file, schema, codec, 1)
    encoder.write(batches)
    encoder.close({})
    return file.data


def read(data: bytes) -> list[dict[str, Any]]:
    """The rows; times are left as integers, because Python has no date for many of them."""
    with mock.patch.dict(LOGICAL_READERS, {"long-timestamp-millis": lambda value, *_: value}):
        return list(cast("Iterator[dict[str, Any]]", fastavro.reader(io.BytesIO(data))))


@given(columns.files(), st.sampled_from([1, 300, 2**20]), st.sampled_from(["null", "deflate", "zstandard"]))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_avro(file: tuple[pa.Schema, list[pa.RecordBatch], columns.Rows], piece: int, codec: str) -> None:
    schema, batches, rows = file
    with mock.patch("engine.encode.pieces._PIECE_BYTES", piece):
        data = written(schema, batches, codec)
    found = [list(numbered(row).values()) for row in read(data)]
    wanted = [[expected(value, schema.field(name).type) for name, value in row.items()] for row in rows]
    assert repr(found) == repr(wanted)


@given(columns.files())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_rows_take_the_bytes_that_fastavro_makes_of_them(
    file: tuple[pa.Schema, list[pa.RecordBatch], columns.Rows],
) -> None:
    """But for decimals: it writes -128 and the like with a byte more than they need."""
    schema, batches, _ = file
    assume("decimal" not in str(schema))
    data = written(schema, batches)
    blocks: Iterator[Any] = fastavro.block_reader(io.BytesIO(data))
    again = io.BytesIO()
    for row in read(data):
        fastavro.schemaless_writer(again, avro_schema(schema), row)
    assert b"".join(block.bytes_.getvalue() for block in blocks) == again.getvalue()


def test_deep_nesting() -> None:
    batch, value = columns.deep()
    assert read(written(batch.schema, [batch])) == [{"a": value}, {"a": None}, {"a": value}]


def test_hundreds_of_sparse_columns() -> None:
    batch, rows = columns.sparse("column_")
    assert read(written(batch.schema, [batch])) == [dict.fromkeys(batch.schema.names) | row for row in rows]


def test_a_value_of_16_mb() -> None:
    long = '"' * 2**24
    batch = pa.record_batch([["", long, None], [b"", long.encode(), None]], ["s", "b"])
    rows = [{"s": "", "b": b""}, {"s": long, "b": long.encode()}, {"s": None, "b": None}]
    assert read(written(batch.schema, [batch])) == rows
