"""The values that each type of column holds and rescues; and unusual arrays, documents and names."""

from __future__ import annotations

import datetime
import json
import struct
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import bson
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from bson import json_util
from bson.binary import Binary
from bson.code import Code
from bson.dbref import DBRef
from bson.decimal128 import Decimal128
from bson.int64 import Int64
from bson.max_key import MaxKey
from bson.min_key import MinKey
from bson.objectid import ObjectId
from bson.regex import Regex
from bson.timestamp import Timestamp

from bench.decode import Schemas
from engine.core.schema import DataType, Field, parse_type
from engine.decode import rowwise
from engine.decode.decoder import Decoder
from engine.decode.json import documents_json
from engine.decode.schema import SchemaOptions
from engine.errors import FatalError
from tests.decode import lake, values

pytestmark = pytest.mark.usefixtures("inner_loops")

OID = ObjectId("0123456789abcdef01234567")
UUID4 = Binary(bytes(range(16)), 4)
NAN = struct.unpack("<d", b"\1\0\0\0\0\0\xf8\x7f")[0]
WHEN = datetime.datetime(2026, 5, 1, tzinfo=datetime.UTC)

# (the column's type, values that it holds, values that it rescues)
TABLE: list[tuple[str, list[tuple[Any, Any]], list[Any]]] = [
    (
        "float64",
        [(1.5, 1.5), (7, 7.0), (Int64(2**53), 2.0**53), (-0.0, -0.0), (float("inf"), float("inf"))],
        [Int64(2**53 + 1), Int64(2**63 - 1), "1", True, Decimal128("1")],
    ),
    (
        "int64",
        [(7, 7), (Int64(2**63 - 1), 2**63 - 1), (2.0, 2), (-(2.0**63), -(2**63)), (0.0, 0)],
        [2.5, -0.0, 2.0**63, float("nan"), float("inf"), "7", False],
    ),
    (
        "int32",
        [(7, 7), (Int64(-(2**31)), -(2**31)), (5.0, 5), (2.0**31 - 1, 2**31 - 1)],
        [Int64(2**31), 2.0**31, -0.0, 0.5, "x"],
    ),
    ("bool", [(True, True), (False, False)], [1, "true"]),
    ("string", [("", ""), ("a\0b", "a\0b"), ("\u00e4\U0001f600", "\u00e4\U0001f600")], [1, OID, Code("x")]),
    ("timestamp", [(WHEN, WHEN.astimezone(ZoneInfo("UTC")))], [1, Timestamp(1, 1), "2026-05-01"]),
    ("object_id", [(OID, str(OID))], ["0123456789abcdef01234567", 1]),
    ("fixed_size_binary[12]", [(OID, OID.binary)], [1]),
    (
        "decimal",
        [
            (Decimal128(text), str(Decimal128(text)))
            for text in ("0", "-0", "1.50", "0.000001", "1E+3", "-1234567890123456.7", "9" * 34, "NaN")
        ],
        [1, 1.5, "1.5"],
    ),
    (
        "decimal128(10, 2)",
        [
            (Decimal128("1.5"), Decimal("1.50")),
            (7, Decimal("7.00")),
            (0.25, Decimal("0.25")),
            (Decimal128("1E+3"), Decimal("1000.00")),
        ],
        [Decimal128("1.505"), 0.1, Int64(10**9), Decimal128("NaN"), -0.0, float("nan"), "1"],
    ),
    ("binary", [(b"", b""), (b"\0\xff", b"\0\xff")], [Binary(b"x", 5), UUID4, "x"]),
    ("uuid", [(UUID4, "00010203-0405-0607-0809-0a0b0c0d0e0f")], [Binary(b"short", 4), b"0123456789abcdef"]),
    ("json", [(1, "1"), ("x", '"x"'), ({"a": [1.0]}, '{"a":[1.0]}'), (OID, f'{{"$oid":"{OID}"}}')], []),
    ("list<int64>", [([1, None, Int64(2)], [1, None, 2]), ([], [])], [[1, "x"], [2.5], 1, {"0": 1}]),
]  # fmt: skip


def decoded(documents: list[bytes], options: SchemaOptions) -> tuple[pa.RecordBatch, Any]:
    schemas = Schemas(options.max_fields)
    data, offsets = values.as_array(documents)
    (batch,) = Decoder(schemas, options, ("db", "c")).decode_documents(data, offsets).batches
    return batch.batch, schemas.get("db", "c")


def column(batch: pa.RecordBatch, name: str) -> list[Any]:
    return batch.column(name).to_pylist() if name in batch.schema.names else [None] * batch.num_rows


@pytest.mark.parametrize("copies", [1, 30], ids=["walked", "in step"])
@pytest.mark.parametrize(("name", "held", "refused"), TABLE, ids=[each[0] for each in TABLE])
def test_type_table(name: str, held: list[tuple[Any, Any]], refused: list[Any], copies: int) -> None:
    options = SchemaOptions(overrides={"c.v": parse_type(name)})
    given = [value for value, _ in held] + refused
    documents = [bson.encode({"v": value}) for value in given for _ in range(copies)]
    batch, schema = decoded(documents, options)
    assert schema.fields[0].type == parse_type(name)
    expected = [each for _, value in held for each in [value] * copies]
    found = column(batch, "v")
    assert repr(found[: len(expected)]) == repr(expected)
    assert found[len(expected) :] == [None] * (len(found) - len(expected))
    rescued = column(batch, "_cdc_rescued")
    assert rescued[: len(expected)] == [None] * len(expected)
    for text, document in zip(rescued[len(expected) :], documents[len(expected) :], strict=True):
        assert lake.json_members(text) == lake.document_tree(document)
    by_row, lost = rowwise.columns([rowwise.whole(each) for each in documents], schema.fields)
    assert repr(by_row["v"].to_pylist()) == repr(found)
    assert [rowwise.object_json(each.values) if each.values else None for each in lost] == rescued


@pytest.mark.parametrize("copies", [1, 9], ids=["walked", "in step"])
def test_dates_that_readers_cannot_hold_are_rescued(copies: int) -> None:
    """Also inside lists and structs; the others keep their milliseconds."""
    held = [-9_223_372_036_854_775, -1, 0, 253402300800000, 9_223_372_036_854_775]
    refused = [-(2**63), -9_223_372_036_854_776, 9_223_372_036_854_776, 2**63 - 1]
    documents = []
    for stamp in (held + refused) * copies:
        date = struct.pack("<q", stamp)
        inner = values.element(3, b"s", values.document([values.element(9, b"t", date)]))
        items = values.document([values.element(9, b"0", date), values.element(9, b"1", bytes(8))])
        documents.append(values.document([values.element(9, b"v", date), inner, values.element(4, b"l", items)]))
    batch, schema = decoded(documents, SchemaOptions())
    none: list[Any] = [None] * len(refused)
    assert batch.column("v").cast(pa.int64()).to_pylist() == (held + none) * copies
    assert pc.struct_field(batch.column("s"), "t").cast(pa.int64()).to_pylist() == (held + none) * copies
    lists = [[stamp, 0] for stamp in held]
    assert batch.column("l").cast(pa.list_(pa.int64())).to_pylist() == (lists + none) * copies
    rescued = [json.loads(each) if each else {} for each in column(batch, "_cdc_rescued")]
    assert [set(each) for each in rescued] == ([set()] * len(held) + [{"v", "s.t", "l"}] * len(refused)) * copies
    far = [int(each["v"]["$date"]["$numberLong"]) for each in rescued if each]
    assert far == refused * copies
    _, lost = rowwise.columns([rowwise.whole(each) for each in documents], schema.fields)
    assert [json.loads(rowwise.object_json(each.values)) for each in lost] == rescued
    with pytest.raises(FatalError, match="has a date that its column"):
        decoded(documents, SchemaOptions(on_mismatch="fail"))


@pytest.mark.parametrize("copies", [1, 9], ids=["walked", "in step"])
def test_what_no_server_here_sends_is_kept_in_extra(copies: int) -> None:
    """Events of a sharded cluster, and fields of later servers: whatever has no column of its own."""
    ns = {"db": "db", "coll": "c"}
    described = {"shardKey": {"region": 1, "_id": "hashed"}, "unique": False, "numInitialChunks": Int64(0)}
    events: list[dict[str, Any]] = [
        {"operationType": "shardCollection", "ns": ns, "collectionUUID": UUID4, "operationDescription": described},
        {"operationType": "reshardCollection", "ns": ns, "operationDescription": {"reshardUUID": UUID4}},
        {"operationType": "migrateChunkToNewShard", "ns": ns, "operationDescription": {"fromShardId": "a"}},
        {
            "operationType": "update",
            "ns": ns,
            "documentKey": {"region": "x", "_id": 1},
            "updateDescription": {"updatedFields": {"a.0": 1}, "disambiguatedPaths": {"a.0": ["a", "0"]}},
            "collectionUUID": UUID4,
        },
    ]
    data, offsets = values.as_array([bson.encode(each) for each in events] * copies)
    (batch,) = Decoder(Schemas(), SchemaOptions(), ("db", "c")).decode(data, offsets).batches
    extra = [json.loads(each) for each in column(batch.batch, "_cdc_extra")]
    own = {"operationType", "ns", "documentKey", "updateDescription"}
    rest = [{name: value for name, value in each.items() if name not in own} for each in events]
    relaxed = json_util.RELAXED_JSON_OPTIONS
    expected = [json.loads(json_util.dumps(each, json_options=relaxed)) for each in rest]
    assert extra == expected * copies
    assert "disambiguatedPaths" in column(batch.batch, "_cdc_update")[3]


@pytest.mark.parametrize("copies", [1, 9], ids=["walked", "in step"])
def test_a_wall_time_that_readers_cannot_hold_is_kept_in_extra(copies: int) -> None:
    events = []
    for stamp in (5, 2**63 - 1):
        fields = [
            values.element(2, b"operationType", values.sized(b"drop")),
            values.element(9, b"wallTime", struct.pack("<q", stamp)),
        ]
        events.append(values.document(fields))
    data, offsets = values.as_array(events * copies)
    (batch,) = Decoder(Schemas(), SchemaOptions(), ("db", "c")).decode(data, offsets).batches
    assert batch.batch.column("_cdc_wall_time").cast(pa.int64()).to_pylist() == [5, None] * copies
    extra = column(batch.batch, "_cdc_extra")
    assert extra == [None, '{"wallTime":{"$date":{"$numberLong":"9223372036854775807"}}}'] * copies
    slow = [rowwise.envelope(rowwise.read_event(each)) for each in events]  # type: ignore[arg-type]
    assert [each.get("_cdc_wall_time") for each in slow] == [5, None]
    assert [each.get("_cdc_extra") for each in slow] == extra[:2]


@pytest.mark.parametrize(
    "item",
    [1.5, 7, True, None, OID, "x", "\u00e4" * 50, {"a": 1, "b": [1]}, [1, 2], Int64(5), UUID4, Decimal128("1.5")],
    ids=repr,
)
@pytest.mark.parametrize("length", [1, 17, 24, 99, 100, 101, 1234])
def test_arrays_of_any_length(item: Any, length: int) -> None:
    """Long ones are decoded in runs, or element by element if few rows have them."""
    documents = [bson.encode({"n": n, "v": [item] * (length + n % 2)}) for n in range(20)]
    batch, schema = decoded(documents, SchemaOptions())
    for document, row in zip(documents, batch.to_pylist(), strict=True):
        assert lake.document_of(row, schema.fields) == lake.document_tree(document)


@pytest.mark.parametrize("rows", [3, 250])
@pytest.mark.parametrize("place", [0, 5, 30, 150])
@pytest.mark.parametrize("wrong", [b"x", b"0", b"999"])
def test_array_keys_out_of_sequence(rows: int, place: int, wrong: bytes) -> None:
    """Such an array is kept as bytes, and does not affect other rows."""
    keys = [b"%d" % n for n in range(160)]
    one = struct.pack("<d", 1.0)
    fine = values.document([values.element(1, key, one) for key in keys])
    keys[place] = wrong if wrong != b"%d" % place else b"00"
    broken = values.document([values.element(1, key, one) for key in keys])
    documents = [values.document([values.element(4, b"v", broken if n == 1 else fine)]) for n in range(rows)]
    batch, schema = decoded(documents, SchemaOptions())
    assert [row is None for row in column(batch, "v")] == [n == 1 for n in range(rows)]
    for document, row in zip(documents[:3], batch.slice(0, 3).to_pylist(), strict=True):
        assert lake.document_of(row, schema.fields) == lake.document_tree(document)


def test_an_interrupted_run() -> None:
    items: list[Any] = [1.0] * 40 + ["x"] + [2.0] * 70 + [None] + [3] * 200 + [4.0] * 50
    documents = [bson.encode({"v": items}), bson.encode({"v": [1.0] * 50})]
    batch, schema = decoded(documents, SchemaOptions(overrides={"c.v": parse_type("list<double>")}))
    assert column(batch, "v") == [None, [1.0] * 50]
    assert lake.document_of(batch.to_pylist()[0], schema.fields) == lake.document_tree(documents[0])


def test_a_thousand_shapes_in_one_batch() -> None:
    rng = np.random.default_rng(1)
    documents = []
    for n in range(1500):
        names = [f"f{field}" for field in np.flatnonzero(rng.random(60) < 0.4)]
        documents.append(bson.encode({"_id": n} | {name: n if int(name[1:]) % 2 else str(n) for name in names}))
    batch, schema = decoded(documents, SchemaOptions())
    assert len({tuple(lake.document_tree(each)) for each in documents}) > 1000
    assert len(schema.fields) == 61
    assert "_cdc_rescued" not in batch.schema.names
    for document, row in zip(documents, batch.to_pylist(), strict=True):
        assert lake.document_of(row, schema.fields) == lake.document_tree(document)


class TestCrowded:
    """The number of columns is limited, for collections with dynamic keys."""

    def test_a_sub_document_becomes_json(self) -> None:
        documents = [bson.encode({"n": n, "by_device": {f"d{n}_{k}": k for k in range(10)}}) for n in range(300)]
        batch, schema = decoded(documents, SchemaOptions())
        assert [(field.name, field.type.kind) for field in schema.fields] == [
            ("n", "int64"),
            ("by_device", "json"),
        ]
        assert json.loads(column(batch, "by_device")[7]) == {f"d7_{k}": k for k in range(10)}

    def test_a_document_of_dynamic_keys_is_rescued_past_the_cap(self) -> None:
        documents = [bson.encode({"n": n} | {f"d{n}_{k}": k for k in range(10)}) for n in range(300)]
        batch, schema = decoded(documents, SchemaOptions(max_fields=50))
        assert len(schema.fields) <= 50
        for document, row in zip(documents, batch.to_pylist(), strict=True):
            assert lake.document_of(row, schema.fields) == lake.document_tree(document)

    def test_the_cap_counts_leaves(self) -> None:
        documents = [bson.encode({"a": 1, "s": {"x": 1, "y": 2}, "t": {"x": 1, "y": 2}, "z": 9})] * 20
        batch, schema = decoded(documents, SchemaOptions(max_fields=4))
        kinds = {field.name: field.type.kind for field in schema.fields}
        assert kinds == {"a": "int64", "s": "struct", "t": "json"}
        assert column(batch, "_cdc_rescued")[0] == '{"z":9}'

    @pytest.mark.parametrize("rows", [1, 5, 300])
    @pytest.mark.parametrize("most", [1, 5, 100, 1000])
    def test_id_and_the_most_common_names_get_columns_first(self, rows: int, most: int) -> None:
        """If there are more names than columns, whatever the order in the documents."""
        rng = np.random.default_rng(rows)
        documents = []
        for n in range(rows):
            names = [f"random{each}" for each in rng.integers(0, 2**60, 2000 if rows < 9 else 30)]
            fields = dict.fromkeys(names, 1) | {f"common{k}": k for k in range(10)}
            documents.append(bson.encode({"_id": n} | fields if n % 2 else fields | {"_id": n}))
        batch, schema = decoded(documents, SchemaOptions(max_fields=most))
        names = [field.name for field in schema.fields]
        assert len(names) == min(most, len({name for each in documents for name in bson.decode(each)}))
        common = [f"common{k}" for k in range(10)]
        assert names[0] == "_id" or len(names) < most
        expected = {"_id", *common[: most - 1]} if rows > 1 else {"_id"}
        assert expected <= set(names)
        assert column(batch, "_id") == list(range(rows))
        assert column(batch, "_cdc_key") == [f'{{"_id":{n}}}' for n in range(rows)]
        assert column(batch, "_cdc_id") == [str(n) for n in range(rows)]
        for document, row in zip(documents[:5], batch.slice(0, 5).to_pylist(), strict=True):
            assert lake.document_of(row, schema.fields) == lake.document_tree(document)

    def test_a_row_that_turns_out_odd_when_its_name_gets_a_column_is_kept(self) -> None:
        """Its array has a key that is no number, which is seen only when it is looked into."""
        like = [bson.encode({"a": [1] * 20})] * 5 + [bson.encode({"b": [0.5] * 20, "a": [], "d": [], "e": []})]
        odd = bytearray(bson.encode({"a": [], "f": [], "c": [[]]}))
        odd[odd.index(b"\x040\0") + 1] = ord("c")
        batch, _ = decoded([*like, bytes(odd)], SchemaOptions(max_fields=4))
        assert batch.num_rows == 7
        assert "c" in batch.column_names or '"c"' in batch["_cdc_rescued"][6].as_py()

    def test_all_names_fit_in_the_order_of_the_documents(self) -> None:
        documents = [bson.encode({"seldom": 1, "b": 1, "a": 1}), *[bson.encode({"a": 1, "_id": 1, "b": 1})] * 20]
        _, schema = decoded(documents, SchemaOptions(max_fields=4))
        assert [field.name for field in schema.fields] == ["seldom", "b", "a", "_id"]

    @pytest.mark.parametrize("rows", [1, 40])
    def test_a_large_id_is_json_and_the_key_is_whole(self, rows: int) -> None:
        documents = [
            bson.encode({"a": n, "_id": {f"part{k}": n for k in range(5)}, "text": "x"}) for n in range(rows)
        ]
        batch, schema = decoded(documents, SchemaOptions(max_fields=1))
        assert [(field.name, field.type.kind) for field in schema.fields] == [("_id", "json")]
        keys = [{f"part{k}": n for k in range(5)} for n in range(rows)]
        assert [json.loads(each) for each in column(batch, "_id")] == keys
        assert [json.loads(each)["_id"] for each in column(batch, "_cdc_key")] == keys
        assert None not in column(batch, "_cdc_id")

    def test_id_gets_a_column_in_a_schema_that_is_full(self) -> None:
        schemas = Schemas(2)
        schemas.grow("db", "c", (Field("x", DataType("int64")), Field("y", DataType("int64"))))
        data, offsets = values.as_array([bson.encode({"x": 1, "z": 1, "_id": 7})])
        (batch,) = (
            Decoder(schemas, SchemaOptions(max_fields=2), ("db", "c")).decode_documents(data, offsets).batches
        )
        assert [field.name for field in schemas.get("db", "c").fields] == ["x", "y", "_id"]
        assert column(batch.batch, "_id") == [7]


class TestOptions:
    def test_dropped_fields_do_not_land(self) -> None:
        options = SchemaOptions(overrides={"c.secret": parse_type("drop"), "c.a.secret": parse_type("drop")})
        documents = [bson.encode({"n": 1, "secret": "x", "a": {"secret": "y", "b": 2}})] * 20
        batch, schema = decoded(documents, options)
        assert "_cdc_rescued" not in batch.schema.names
        assert "secret" not in batch.schema.names
        assert column(batch, "a")[0] == {"b": 2}
        by_row, lost = rowwise.columns([rowwise.whole(each) for each in documents], schema.fields)
        assert by_row["a"].to_pylist() == column(batch, "a")
        assert not lost[0].values

    def test_overrides_reach_into_arrays_of_documents(self) -> None:
        options = SchemaOptions(overrides={"c.items.price": parse_type("decimal128(9, 2)")})
        batch, _ = decoded([bson.encode({"items": [{"price": Decimal128("1.5")}]})] * 20, options)
        assert column(batch, "items")[0] == [{"price": Decimal("1.50")}]

    def test_overrides_of_other_collections_do_not_apply(self) -> None:
        _, schema = decoded([bson.encode({"v": 1})], SchemaOptions(overrides={"other.v": parse_type("string")}))
        assert schema.fields[0].type == DataType("int64")

    @pytest.mark.parametrize("copies", [1, 30])
    def test_a_mismatch_fails_if_configured(self, copies: int) -> None:
        documents = [bson.encode({"v": 1})] * 40 + [bson.encode({"v": "x"})] * copies
        with pytest.raises(FatalError, match=r"decode db.c: field 'v' has a string that its column \(int64\)"):
            decoded(documents, SchemaOptions(on_mismatch="fail"))
        decoded([bson.encode({"v": []}), bson.encode({"_cdc_x": 1})], SchemaOptions(on_mismatch="fail"))

    def test_depth(self) -> None:
        documents = [bson.encode({"a": {"b": {"c": {"d": 1}}}})] * 20
        for depth, column_ in (
            (1, '{"b":{"c":{"d":1}}}'),
            (2, {"b": '{"c":{"d":1}}'}),
            (3, {"b": {"c": '{"d":1}'}}),
        ):
            batch, _ = decoded(documents, SchemaOptions(max_depth=depth))
            assert column(batch, "a")[0] == column_

    def test_raw_keeps_all(self) -> None:
        documents = [bson.encode({"n": n, "x": None}) for n in range(30)]
        documents[3] = values.document([values.element(0x10, b"n", b"\1\0\0\0")] * 2)
        batch, _ = decoded(documents, SchemaOptions(raw=True))
        assert column(batch, "_cdc_raw") == documents


DOCUMENTS: list[dict[str, Any]] = [
    {"_id": OID, "n": 1, "l": Int64(2), "d": 1.0, "s": "\u00e4\"\\\n\u2028", "b": True, "none": None},
    {"when": WHEN, "early": datetime.datetime(1969, 1, 1, tzinfo=datetime.UTC), "bin": b"x", "uuid": UUID4},
    {"inf": float("inf"), "nan": float("nan"), "big": 1e300, "small": 5e-324, "neg": -1, "i": -(2**31)},
    {"dec": Decimal128("1.10"), "re": Regex("a+", "im"), "code": Code("f()"), "scoped": Code("g", {"x": 1})},
    {"ts": Timestamp(5, 6), "min": MinKey(), "max": MaxKey(), "ref": DBRef("c", OID, "db", extra=1)},
    {"deep": {"er": [{"est": [[], {}, [None]]}]}, "empty": {}, "": "no name", "a.b": 1},
]  # fmt: skip


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: "-".join(document)[:30])
def test_json_equals_the_drivers_in_value(document: dict[str, Any]) -> None:
    (text,) = documents_json([bson.encode(document)])
    assert text is not None
    options = json_util.RELAXED_JSON_OPTIONS
    mine = json_util.loads(text, json_options=options)
    assert repr(mine) == repr(
        json_util.loads(json_util.dumps(document, json_options=options), json_options=options)
    )


def test_json_of_many_documents_some_of_them_unusual() -> None:
    strange = values.document([values.element(0x0E, b"a", values.sized(b"symbol"))])
    broken = values.document([values.element(0x02, b"a", struct.pack("<i", 99) + b"x\0")])
    documents = [bson.encode({"n": n}) for n in range(50)]
    documents[10], documents[20], documents[21] = strange, broken, bson.encode({"$oid": "x"})
    texts = documents_json(documents)
    assert texts[9:12] == ['{"n":9}', '{"a":{"$symbol":"symbol"}}', '{"n":11}']
    assert texts[20] is None
    assert texts[21] is not None
    assert texts[21].startswith('{"$bson":')
    assert [text for n, text in enumerate(texts) if n not in (10, 20, 21)] == [
        f'{{"n":{n}}}' for n in range(50) if n not in (10, 20, 21)
    ]
