"""The merge key: one text for all values that MongoDB considers the same ``_id``, columnar or one by one."""

from __future__ import annotations

import struct
from typing import Any

import bson
import numpy as np
import pytest
from bson.binary import Binary
from bson.code import Code
from bson.codec_options import CodecOptions
from bson.decimal128 import Decimal128
from bson.int64 import Int64
from bson.max_key import MaxKey
from bson.min_key import MinKey
from bson.objectid import ObjectId
from bson.raw_bson import RawBSONDocument
from bson.regex import Regex
from bson.timestamp import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from pymongo import MongoClient
from pymongo.errors import BulkWriteError

from bench.decode import Schemas
from engine.decode.decoder import Decoder
from engine.decode.identity import merge_key
from engine.decode.schema import SchemaOptions
from tests.decode import values

OID = ObjectId("0123456789abcdef01234567")
NAN = struct.unpack("<d", b"\1\0\0\0\0\0\xf8\x7f")[0]
# Each text, and the values that have it.
SAME: list[tuple[str, list[Any]]] = [
    ("1", [1, Int64(1), 1.0, Decimal128("1"), Decimal128("1.0"), Decimal128("1.000"), Decimal128("10E-1")]),
    ("0", [0, Int64(0), 0.0, -0.0, Decimal128("0"), Decimal128("-0"), Decimal128("0E+300")]),
    ("-7", [-7, -7.0, Decimal128("-7.0")]),
    ("0.5", [0.5, Decimal128("0.5"), Decimal128("0.50")]),
    ("9007199254740993", [Int64(2**53 + 1), Decimal128("9007199254740993")]),
    ("9007199254740992", [2.0**53, Int64(2**53), Decimal128("9007199254740992.0")]),
    ("9223372036854775808", [2.0**63, Decimal128("9223372036854775808")]),
    ("10000000000000000000000", [1e22, Decimal128("1E+22")]),
    ("1E300", [Decimal128("1E+300"), Decimal128("10E+299")]),
    ("0.0000001", [Decimal128("0.0000001")]),
    ("1E-40", [Decimal128("1E-40")]),
    ('{"$numberDouble":"0.1"}', [0.1]),
    ("0.1", [Decimal128("0.1")]),
    ('{"$numberDouble":"1e+300"}', [1e300]),
    ('{"$numberDouble":"NaN"}', [float("nan"), -float("nan"), NAN, Decimal128("NaN"), Decimal128("-NaN")]),
    ('{"$numberDouble":"-Infinity"}', [float("-inf"), Decimal128("-Infinity")]),
    ('"1"', ["1"]),
    ('{"$oid":"0123456789abcdef01234567"}', [OID]),
    ('"0123456789abcdef01234567"', [str(OID)]),
    ('{"$$oid":"0123456789abcdef01234567"}', [{"$oid": str(OID)}]),
    ('{"a":1,"b":[2]}', [{"a": 1, "b": [2.0]}, {"a": Decimal128("1.0"), "b": [Int64(2)]}]),
    ('{"b":[2],"a":1}', [{"b": [2], "a": 1}]),
    ('{"$code":"f","$scope":{"x":1}}', [Code("f", {"x": 1.0}), Code("f", {"x": 1})]),
    ("true", [True]),
    ("null", [None]),
    ('{"$binary":{"base64":"AAE=","subType":"00"}}', [b"\0\1"]),
    ('{"$binary":{"base64":"AAE=","subType":"05"}}', [Binary(b"\0\1", 5)]),
    ('{"$timestamp":{"t":1,"i":2}}', [Timestamp(1, 2)]),
    ('{"$minKey":1}', [MinKey()]),
    ('{"$maxKey":1}', [MaxKey()]),
    ('{"$regularExpression":{"pattern":"a","options":"i"}}', [Regex("a", "i")]),
]


def key_of(value: Any) -> str:
    """The key of one value."""
    data = bson.encode({"_id": value})
    return merge_key(data, data[4], 9, len(data) - 1)


@pytest.mark.parametrize(("text", "found"), SAME, ids=[text for text, _ in SAME])
def test_the_text(text: str, found: list[Any]) -> None:
    assert {key_of(value) for value in found} == {text}


def test_a_symbol_has_the_key_of_its_string() -> None:
    data = b"\x0e_id\0" + values.sized(b"ab")
    whole = values.document([data])
    assert merge_key(whole, whole[4], 9, len(whole) - 1) == '"ab"'


def element_of(value: Any) -> values.Value:
    data = bson.encode({"_id": value})
    return data[4], data[9:-1]


_near = st.one_of(
    st.sampled_from([each for _, found in SAME for each in found]).map(element_of),
    values.scalars,
    values.values,
)


@given(found=st.lists(_near, min_size=1, max_size=12), picks=st.lists(st.integers(0, 11), max_size=30))
def test_columns_contain_the_defined_text(found: list[values.Value], picks: list[int]) -> None:
    """For documents and events, with any mixture of types."""
    rows = [found[pick % len(found)] for pick in [*range(len(found)), *picks]]
    documents = [values.document([values.element(kind, b"_id", value)]) for kind, value in rows]
    expected = [merge_key(each, each[4], 9, len(each) - 1) for each in documents]
    decoder = Decoder(Schemas(), SchemaOptions(), ("db", "c"))
    (read,) = decoder.decode_documents(*values.as_array(documents)).batches
    assert read.batch.column("_cdc_id").to_pylist() == expected
    kind = values.element(0x02, b"operationType", values.sized(b"delete"))
    events = [
        values.document([values.element(0x03, b"_id", bson.encode({"_data": "82"})), kind,
                         values.element(0x03, b"documentKey", each)])
        for each in documents
    ]  # fmt: skip
    batches = decoder.decode(*values.as_array(events)).batches
    assert [text for each in batches for text in each.batch.column("_cdc_id").to_pylist()] == expected


def test_an_event_without_a_key_has_none() -> None:
    events = [bson.encode({"_id": {"_data": "82"}, "operationType": "drop"})]
    (batch,) = Decoder(Schemas(), SchemaOptions(), ("db", "c")).decode(*values.as_array(events)).batches
    assert "_cdc_id" not in batch.batch.schema.names or batch.batch.column("_cdc_id").to_pylist() == [None]


# --- compared with a real server --------------------------------------------------------------------------------


def numbers(rng: np.random.Generator) -> list[Any]:
    """A number in many types, and its neighbours."""
    base = int(
        rng.choice([0, 1, -1, 2**31, 2**53, 2**53 + 1, 2**63 - 1, -(2**63), int(rng.integers(-(10**6), 10**6))])
    )
    double = float(base)
    near = [double, float(np.nextafter(double, np.inf)), -double, double / 3, double * 0.5, double * 1e17]
    found: list[Any] = [
        Int64(base),
        *near,
        Decimal128(str(base)),
        Decimal128(f"{base}.00"),
        Decimal128(f"{base}E+2"),
    ]
    for each in near:
        text = f"{each:.34g}" if "e" not in f"{each:.34g}" else f"{each:.33E}"
        found += [Decimal128(f"{each!r}"), Decimal128(text)]
    return found + ([base] if -(2**31) <= base < 2**31 else [])


def wrapped(rng: np.random.Generator, value: Any) -> Any:
    """The value itself, or inside a document or an array."""
    match int(rng.integers(0, 6)):
        case 0:
            return {"a": value}
        case 1:
            return {"a": [value, {"b": value}]}
        case 2:
            return {"a": Code("f", {"x": value})}
        case 3:
            return {"a": 1, "b": value}
    return value


def raw_id(kind: int, value: bytes) -> bytes:
    return values.document([values.element(kind, b"_id", value)])


def candidates(seed: int) -> list[bytes]:
    """Documents with only an ``_id``, many of which are duplicates to MongoDB."""
    rng = np.random.default_rng(seed)
    plain = [
        each for _, found in SAME for each in found if not isinstance(each, Regex) and each != {"$oid": str(OID)}
    ]
    plain += [value for _ in range(25) for value in numbers(rng)]
    plain += ["", "a", "a\0b", "\ufeff", "é", "e\u0301", OID, ObjectId(), {}, {"a": None}, {"a": {}}, {"a": []}]
    plain += [
        {"a": [[]]},
        {"a": [None]},
        {"b": 1, "a": 1},
        {"a": 1, "b": 1},
        {"a": Regex("a", "i")},
        {"a": Regex("a")},
    ]
    plain += [Binary(b"ab", kind) for kind in (0, 2, 5, 128)] + [Binary(bytes(16), 4), Binary(bytes(16), 3)]
    found = [bson.encode({"_id": wrapped(rng, each)}) for each in plain for _ in range(2)]
    found += [bson.encode({"_id": each}) for each in plain]
    text = values.sized(b"a")
    found += [raw_id(kind, text) for kind in (0x02, 0x0D, 0x0E)]
    inner = [values.document([values.element(kind, b"a", text)]) for kind in (0x02, 0x0D, 0x0E)]
    inner += [values.document([values.element(0x0C, b"a", text + bytes(12))])]
    inner += [values.document([values.element(kind, b"a", b"")]) for kind in (0x06, 0x0A, 0x7F, 0xFF)]
    inner += [
        values.document([values.element(0x0B, b"a", b"x\0" + flags + b"\0")]) for flags in (b"ix", b"xi", b"")
    ]
    found += [raw_id(0x03, each) for each in inner]
    rng.shuffle(found)  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("seed", range(4))
def test_the_same_text_is_a_duplicate_key(seed: int, mongo: MongoClient[Any], unique: str) -> None:
    """And no other: compared with the unique index of a real server."""
    documents = candidates(seed)
    collection = mongo[unique]["ids"]
    reader = collection.with_options(CodecOptions(document_class=RawBSONDocument))
    with pytest.raises(BulkWriteError) as raised:
        collection.insert_many([RawBSONDocument(each) for each in documents], ordered=False)
    errors = raised.value.details["writeErrors"]
    assert {each["code"] for each in errors} == {11000}
    refused = [each["index"] for each in errors]
    texts = [merge_key(each, each[4], 9, len(each) - 1) for each in documents]
    accepted = {text for index, text in enumerate(texts) if index not in set(refused)}
    assert len(accepted) == len(documents) - len(refused), "MongoDB has two keys, and we have one text"
    assert len(refused) > 100
    for index in refused:
        wanted = values.document([values.element(documents[index][4], b"$eq", documents[index][9:-1])])
        (found,) = reader.find(RawBSONDocument(raw_id(0x03, wanted)))
        kept = bytes(found.raw)
        assert merge_key(kept, kept[4], 9, len(kept) - 1) == texts[index]
