"""A schema from the columns of a file leads to the same columns again."""

from __future__ import annotations

from engine.core.schema import CollectionSchema, DataType, Field, grow
from engine.core.schemas import packed_schema, unpacked_schema
from engine.decode.schema import arrow_schema
from engine.lake.schemas import schema_of

SCHEMA = grow(
    CollectionSchema(),
    (
        Field("_id", DataType("object_id")),
        Field("Name", DataType("string")),
        Field("name", DataType("json")),
        Field("_cdc_x", DataType("int64")),
        Field("price", DataType("decimal128", precision=38, scale=2)),
        Field("raw", DataType("binary", subtype=5)),
        Field("key", DataType("object_id_binary")),
        Field("gone", DataType("drop")),
        Field("ids", DataType("list", item=DataType("int64"))),
        Field(
            "sub",
            DataType("struct", (Field("at", DataType("timestamp")), Field("At", DataType("uuid")))),
        ),
        Field("rows", DataType("list", item=DataType("struct", (Field("n", DataType("float64")),)))),
    ),
    1000,
)


def test_the_columns_are_the_same() -> None:
    for raw in (False, True):
        found = schema_of(arrow_schema(SCHEMA, raw=raw), 1)
        assert arrow_schema(found, raw=raw).equals(arrow_schema(SCHEMA, raw=raw), check_metadata=True)
        kept = [field for field in SCHEMA.fields if field.type.kind != "drop"]
        assert list(found.fields) == kept


def test_a_footer_holds_all_of_it() -> None:
    assert unpacked_schema(packed_schema(SCHEMA)) == SCHEMA
