"""Properties of the decoder for all types and shapes of documents."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any
from uuid import UUID

import bson
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from bench.decode import Schemas
from engine.decode import rowwise
from engine.decode.decoder import Decoder
from engine.decode.schema import METADATA_COLUMNS, SchemaOptions, arrow_type
from tests.decode import lake, values

pytestmark = pytest.mark.usefixtures("inner_loops")

NAMESPACE = ("db", "c")
OPTIONS = [
    SchemaOptions(raw=True),
    SchemaOptions(max_depth=2, integers="exact", object_id="binary"),
    SchemaOptions(max_fields=4),
]


def decoded(found: list[bytes], options: SchemaOptions, schemas: Schemas | None = None) -> tuple[Any, Any]:
    """The record batch of some documents, and its schema."""
    schemas = schemas or Schemas(options.max_fields)
    data, offsets = values.as_array(found)
    result = Decoder(schemas, options, NAMESPACE).decode_documents(data, offsets)
    assert not result.dead_letters
    (batch,) = result.batches
    assert batch.batch.num_rows == len(found)
    batch.batch.validate(full=True)
    return batch.batch, schemas.get(*NAMESPACE)


def rows_of(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows, with timestamps as their milliseconds."""
    columns = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        columns[name] = milliseconds(column).to_pylist()
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def milliseconds(array: pa.Array) -> pa.Array:
    """The array with timestamps as integers, because Python's datetimes have a smaller range."""

    def without(type_: pa.DataType) -> pa.DataType:
        if pa.types.is_timestamp(type_):
            return pa.int64()
        if pa.types.is_struct(type_):
            return pa.struct([pa.field(each.name, without(each.type)) for each in type_])
        if pa.types.is_list(type_):
            return pa.list_(without(type_.value_type))
        return type_

    return array.cast(without(array.type))


@pytest.mark.parametrize("options", OPTIONS, ids=["default", "exact", "crowded"])
@given(found=values.batches())
@settings(max_examples=250, deadline=None)
def test_rows_decode_back_to_their_documents(options: SchemaOptions, found: list[bytes]) -> None:
    batch, schema = decoded(found, options)
    for data, row in zip(found, rows_of(batch), strict=True):
        assert lake.document_of(row, schema.fields) == lake.document_tree(data)
        assert not options.raw or row["_cdc_raw"] == data


@pytest.mark.parametrize("options", OPTIONS, ids=["default", "exact", "crowded"])
@given(found=values.batches())
@settings(max_examples=250, deadline=None)
def test_the_columnar_decoder_agrees_with_the_row_decoder(options: SchemaOptions, found: list[bytes]) -> None:
    batch, schema = decoded(found, options)
    arrays, lost = rowwise.columns([rowwise.whole(each) for each in found], schema.fields)
    for field in schema.fields:
        if field.type.kind == "drop":
            continue
        name = field.column or field.name
        by_row = arrays.get(name, pa.nulls(len(found), arrow_type(field.type)))
        fast = batch.column(name) if name in batch.schema.names else pa.nulls(len(found), by_row.type)
        assert repr(milliseconds(fast).to_pylist()) == repr(milliseconds(by_row).to_pylist()), field.name
    rescued = [rowwise.object_json(each.values) if each.values else None for each in lost]
    names = batch.schema.names
    assert (
        batch.column("_cdc_rescued").to_pylist() if "_cdc_rescued" in names else [None] * len(found)
    ) == rescued


@given(first=values.batches(), second=values.batches())
@settings(max_examples=100, deadline=None)
def test_a_schema_holds_for_later_batches(first: list[bytes], second: list[bytes]) -> None:
    schemas, options = Schemas(), SchemaOptions()
    before, _ = decoded(first, options, schemas)
    after, schema = decoded(second, options, schemas)
    for data, row in zip(second, rows_of(after), strict=True):
        assert lake.document_of(row, schema.fields) == lake.document_tree(data)
    for name in before.schema.names:
        if name in after.schema.names:
            assert kinds_of(before.schema.field(name).type) <= kinds_of(after.schema.field(name).type)


def kinds_of(type_: pa.DataType, path: str = "") -> set[str]:
    """The types of all leaves, by path."""
    if pa.types.is_struct(type_):
        return set().union(*(kinds_of(each.type, f"{path}.{each.name}") for each in type_))
    if pa.types.is_list(type_):
        return kinds_of(type_.value_type, f"{path}[]")
    return {f"{path}: {type_}"}


_MADE: dict[str, Callable[[int], Any]] = {
    "string": "text {}".format,
    "object_id": lambda n: bson.ObjectId(n.to_bytes(12, "big")),
    "uuid": lambda n: bson.Binary.from_uuid(UUID(int=n)),
    "binary": lambda n: bson.Binary(bytes(n % 50)),
    "decimal": lambda n: bson.Decimal128(f"{n}.50"),
    "int": lambda n: n,
    "double": lambda n: n / 4,
    "bool": lambda n: n % 2 == 0,
    "array": lambda n: list(range(n % 5)),
    "document": lambda n: {"inner": f"text {n}"},
}


@pytest.mark.parametrize("kinds", [*((kind,) for kind in _MADE), ("string", "int"), tuple(_MADE)], ids="-".join)
@pytest.mark.parametrize("nested", [False, True])
def test_a_name_that_occurs_twice_moves_no_other_row(kinds: tuple[str, ...], nested: bool) -> None:
    rng = random.Random(repr((kinds, nested)))

    def fields(row: int) -> bytes:
        found = bson.encode({"value": _MADE[rng.choice(kinds)](row)})
        return found[4:-1]

    def document(body: bytes) -> bytes:
        return (len(body) + 5).to_bytes(4, "little") + body + b"\0"

    broken = set(rng.sample(range(200), 5))
    found = []
    for row in range(200):
        body = b"".join(fields(row) for _ in range(2 if row in broken else 1))
        found.append(document(b"\3outer\0" + document(body) if nested else body))
    batch, schema = decoded(found, SchemaOptions(raw=True))
    for row, values_ in enumerate(rows_of(batch)):
        assert values_["_cdc_raw"] == found[row]
        if row not in broken:
            assert lake.document_of(values_, schema.fields) == lake.document_tree(found[row])


@pytest.mark.parametrize("name", ["_id", "operationType", "documentKey"])
def test_an_envelope_with_a_name_twice_moves_no_other_event(name: str) -> None:
    """Resume tokens and keys are read from envelopes as values are from documents."""

    def event(row: int) -> dict[str, Any]:
        key = bson.ObjectId(row.to_bytes(12, "big"))
        return {
            "_id": {"_data": f"82{row:08X}"},
            "operationType": ("insert", "replace")[row % 2],
            "clusterTime": bson.Timestamp(1_795_000_000, row + 1),
            "ns": {"db": "db", "coll": "c"},
            "documentKey": {"_id": key},
            "fullDocument": {"_id": key, "n": row},
        }

    broken = {3, 4, 100, 199}
    found = []
    for row in range(200):
        body = bson.encode(event(row))[4:-1]
        if row in broken:
            body += bson.encode({name: event(row)[name]})[4:-1]
        found.append((len(body) + 5).to_bytes(4, "little") + body + b"\0")
    data, offsets = values.as_array(found)
    result = Decoder(Schemas(), SchemaOptions(raw=True), NAMESPACE).decode(data, offsets)
    assert sorted(result.dead_letters) == sorted(found[row] for row in broken)
    (batch,) = result.batches
    whole = [row for row in range(200) if row not in broken]
    for row, landed in zip(whole, rows_of(batch.batch), strict=True):
        assert landed["_cdc_raw"] == found[row]
        wanted = event(row)
        assert (landed["_cdc_token"], landed["_cdc_op"]) == (wanted["_id"]["_data"], wanted["operationType"])
        assert landed["_cdc_id"] == f'{{"$oid":"{wanted["documentKey"]["_id"]}"}}'
        assert landed["n"] == row


def test_batches_of_any_size_decode_alike() -> None:
    """Small batches are decoded row by row, large ones by columns."""
    rng = np.random.default_rng(5)
    found = []
    for number in range(600):
        pairs = [(b"f%d" % field, 0x10, int(number).to_bytes(4, "little")) for field in rng.permutation(12)[:7]]
        found.append(values.document([values.element(kind, name, value) for name, kind, value in pairs]))
    schemas = Schemas()
    whole, schema = decoded(found, SchemaOptions(), schemas)
    parts = [
        row for at in range(0, 600, 5) for row in rows_of(decoded(found[at : at + 5], SchemaOptions(), schemas)[0])
    ]
    assert schemas.get(*NAMESPACE) == schema
    for row, part, data in zip(rows_of(whole), parts, found, strict=True):
        assert {k: v for k, v in row.items() if v is not None} == {k: v for k, v in part.items() if v is not None}
        assert lake.document_of(row, schema.fields) == lake.document_tree(data)
    assert not METADATA_COLUMNS.keys() & {field.name for field in schema.fields}
