"""Rows back to documents: through the decoder and a Parquet file, compared with the documents that went in."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import Any

import bson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bson import Binary, Decimal128, Int64, ObjectId
from hypothesis import given, settings

from bench.decode import Schemas
from engine.config.tree import SinkConfig
from engine.core.schema import parse_type
from engine.decode.decoder import Decoder
from engine.decode.schema import SchemaOptions, arrow_schema
from engine.encode.parquet import ParquetFile
from engine.lake.documents.comparison import normal_form
from engine.lake.documents.inverse import documents
from tests.decode import corpus, values
from tests.decode.lake import document_tree

NAMESPACE = ("db", "c")
OPTIONS = {
    "default": SchemaOptions(),
    "exact": SchemaOptions(max_depth=2, integers="exact", object_id="binary"),
    "crowded": SchemaOptions(max_fields=4),
}


def landed(
    found: list[bytes], options: SchemaOptions, schemas: Schemas | None = None, *, events: bool = False
) -> pa.RecordBatch:
    """Documents (or events) as rows of a Parquet file."""
    schemas = schemas or Schemas(options.max_fields)
    decoder = Decoder(schemas, options, NAMESPACE)
    decoded = (decoder.decode if events else decoder.decode_documents)(*values.as_array(found))
    file = io.BytesIO()
    writer = ParquetFile(file, arrow_schema(schemas.get(*NAMESPACE), raw=options.raw), SinkConfig(url="file:///x"))
    writer.write([each.batch for each in decoded.batches])
    writer.close({})
    (batch,) = pq.read_table(io.BytesIO(file.getvalue())).combine_chunks().to_batches()
    return batch


def with_id(found: list[bytes]) -> list[bytes]:
    return [values.document([values.element(0x10, b"_id", n.to_bytes(4, "little"))]) for n, _ in enumerate(found)]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@given(found=values.batches())
@settings(max_examples=30, deadline=None)
def test_the_document_comes_back(options: SchemaOptions, found: list[bytes]) -> None:
    for before, after in zip(found, documents(landed(found, options)), strict=True):
        assert document_tree(after) == document_tree(before)
        assert normal_form(after) == normal_form(before)


@given(found=values.batches())
@settings(max_examples=10, deadline=None)
def test_with_raw_it_is_the_same_to_the_byte(found: list[bytes]) -> None:
    assert documents(landed(found, SchemaOptions(raw=True))) == found


@pytest.mark.parametrize("name", [name for name in corpus.COLLECTIONS if name != "huge"])
def test_realistic_collections(name: str) -> None:
    found = list(corpus.collection(name))
    for before, after in zip(found, documents(landed(found, SchemaOptions())), strict=True):
        assert document_tree(after) == document_tree(before)
        assert normal_form(after) == normal_form(before)
        assert bson.decode(after)["_id"] == bson.decode(before)["_id"]


IDS = [
    1,
    Int64(2**40),
    1.0,
    70.5,
    float("nan"),
    Decimal128("1.50"),
    "text",
    ObjectId("0123456789abcdef01234567"),
    Binary(bytes(range(16)), 4),
    Binary(b"abc", 128),
    {"b": 1, "a": {"z": 1.0, "y": Decimal128("2.0")}},
    {"b": "text", "a": {"z": [1], "x": 1}},
    {"a": None, "b": datetime(2020, 1, 1, tzinfo=UTC)},
    True,
    None,
]


def test_an_id_keeps_its_type_and_the_order_of_its_fields() -> None:
    """Each kind of ``_id`` in columns of all kinds that the first document settles."""
    for settling in IDS:
        found = [bson.encode({"_id": each, "n": 1}) for each in [settling, settling, *IDS]]
        assert documents(landed(found, SchemaOptions())) == found


def test_what_the_columns_do_not_tell_has_a_rule() -> None:
    nothing = bson.encode({"_id": 1, "a": None, "list": [1.0, None]})
    found = [
        bson.encode({"_id": 1, "n": Int64(1), "x": 1, "list": [0.5]}),
        bson.encode({"n": 1.0, "x": 2.5, "_id": 2}),
        nothing,
    ]
    back = [bson.decode(each) for each in documents(landed(found, SchemaOptions()))]
    assert back == [
        {"_id": 1, "n": 1, "x": 1.0, "list": [0.5]},
        {"_id": 2, "n": 1, "x": 2.5},
        {"_id": 1, "list": [1.0, None]},
    ]
    assert [type(each) for each in back[0].values()] == [int, float, float, list]


def test_a_decimal_column_is_compared_by_value() -> None:
    options = SchemaOptions(overrides={"c.n": parse_type("decimal128(38, 2)")})
    numbers = [Decimal128("1.5"), Decimal128("1.50"), 1.5, 2, Int64(2**62), 2.0**110, Decimal128("1E+3")]
    found = [bson.encode({"_id": 1, "n": each}) for each in numbers]
    back = documents(landed(found, options))
    assert [normal_form(each, decimals=True) for each in back] == [
        normal_form(each, decimals=True) for each in found
    ]
    assert len({normal_form(each, decimals=True) for each in back}) == 5


def test_files_that_do_not_say_what_the_elements_of_arrays_are() -> None:
    document = bson.encode({"_id": 1, "ids": [ObjectId("0123456789abcdef01234567")], "json": [[{"a": 1}], [1]]})
    batch = landed([document], SchemaOptions())
    known = batch.schema
    bare = pa.schema([without_element_types(field) for field in batch.schema])
    batch = pa.RecordBatch.from_arrays(batch.columns, schema=bare)
    assert documents(batch) != [document]
    assert documents(batch, known) == [document]


def without_element_types(field: pa.Field) -> pa.Field:
    if not pa.types.is_list(field.type):
        return field
    element = field.type.value_field.remove_metadata()
    return pa.field(field.name, pa.list_(element), metadata=field.metadata)


def test_events() -> None:
    """Those with their document, in both ways; without, the key."""

    def event(operation: str, **more: Any) -> bytes:
        head = {"_id": {"_data": "82"}, "operationType": operation, "ns": {"db": "db", "coll": "c"}}
        return bson.encode(head | {"documentKey": {"_id": Int64(7)}} | more)

    document = {"_id": Int64(7), "list": [1, None], "n": None}
    found = [event("insert", fullDocument=document), event("delete"), event("update", fullDocument=None)]
    for raw in (False, True):
        whole, *keys = map(bson.decode, documents(landed(found, SchemaOptions(raw=raw), events=True)))
        assert whole == (document if raw else {"_id": 7, "list": [1, None]})
        assert isinstance(whole["_id"], Int64) is raw
        assert keys == [{"_id": 7}, {"_id": 7}]


def test_the_engines_own_rows_are_checked() -> None:
    batch = pa.RecordBatch.from_pylist([{"_cdc_key": '{"_id":1}', "_cdc_rescued": '{"a.b":1}'}])
    with pytest.raises(ValueError, match="no document"):
        documents(batch)
