"""JSON lines and CSV hold the values of their columns, by rules that share no code with the engine."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
from datetime import datetime, timedelta
from decimal import Context, Decimal
from typing import Any
from unittest import mock

import msgspec
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.encode.compression import CompressedFile
from engine.encode.csv import CsvFile
from engine.encode.json_lines import JsonFile
from tests.encode import columns
from tests.encode.test_formats import Collected

PIECES = st.sampled_from([1, 300, 2**20])


def expected(value: Any, type_: pa.DataType) -> Any:
    """What a parser of JSON makes of a value."""
    if value is None:
        return None
    if pa.types.is_struct(type_):
        return {field.name: expected(value[field.name], field.type) for field in type_}
    if pa.types.is_list(type_):
        return [expected(each, type_.value_type) for each in value]
    if pa.types.is_timestamp(type_):
        try:
            time = datetime(1970, 1, 1) + timedelta(milliseconds=value)
        except OverflowError:
            return value
        return f"{time.isoformat(timespec='milliseconds')}Z"
    if pa.types.is_decimal(type_):
        return str(Decimal(value).scaleb(-type_.scale, Context(prec=40)))
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float) and not math.isfinite(value):
        return {"$numberDouble": {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]}
    return value


def refuse(constant: str) -> None:
    raise AssertionError(constant)


def lines(schema: pa.Schema, batches: list[pa.RecordBatch]) -> list[bytes]:
    file = Collected()
    encoder = JsonFile(CompressedFile(file, "none", 0), schema)
    encoder.write(batches)
    encoder.close({})
    found = file.data.split(b"\n")
    assert found.pop() == b""
    return found


@given(columns.files(), PIECES)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_json_lines(file: tuple[pa.Schema, list[pa.RecordBatch], columns.Rows], piece: int) -> None:
    schema, batches, rows = file
    with mock.patch("engine.encode.pieces._PIECE_BYTES", piece):
        found = lines(schema, batches)
    wanted = [
        {name: expected(value, schema.field(name).type) for name, value in row.items() if value is not None}
        for row in rows
    ]
    assert [repr(json.loads(line, parse_constant=refuse)) for line in found] == [repr(each) for each in wanted]
    assert [repr(msgspec.json.decode(line)) for line in found] == [repr(each) for each in wanted]


@given(columns.files(), PIECES)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_csv(file: tuple[pa.Schema, list[pa.RecordBatch], columns.Rows], piece: int) -> None:
    """What CSV has no type for is as in JSON."""
    schema, batches, rows = file
    written = Collected()
    with mock.patch("engine.encode.pieces._PIECE_BYTES", piece):
        CsvFile(CompressedFile(written, "none", 0), schema).write(batches)
    header, *found = csv.reader(io.StringIO(written.data.decode(), newline=""))
    assert header == schema.names
    for cells, row in zip(found, rows, strict=True):
        for cell, field in zip(cells or [""], schema, strict=True):  # an empty line is one empty cell
            wanted = expected(row[field.name], field.type)
            if pa.types.is_nested(field.type) and cell:
                assert repr(json.loads(cell)) == repr(wanted)
            elif wanted is None or pa.types.is_timestamp(field.type) or isinstance(row[field.name], bytes):
                assert cell == ("" if wanted is None else str(wanted))


def test_deep_nesting() -> None:
    batch, value = columns.deep()
    assert [json.loads(line) for line in lines(batch.schema, [batch])] == [{"a": value}, {}, {"a": value}]


def test_every_character() -> None:
    every = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x11000), 0x10FFFF]))
    (line,) = lines(pa.schema([("s", pa.string())]), [pa.record_batch([[every]], names=["s"])])
    assert json.loads(line) == {"s": every}
    assert line == msgspec.json.encode({"s": every})


def test_hundreds_of_sparse_columns() -> None:
    batch, rows = columns.sparse("column ")
    assert [json.loads(line) for line in lines(batch.schema, [batch])] == rows


def test_a_value_of_16_mb() -> None:
    long = '"' * 2**24
    batch = pa.record_batch([["", long, None], [b"", b"x" * 2**24, None]], ["s", "b"])
    found = [json.loads(line) for line in lines(batch.schema, [batch])]
    assert found == [{"s": "", "b": ""}, {"s": long, "b": base64.b64encode(b"x" * 2**24).decode()}, {}]
