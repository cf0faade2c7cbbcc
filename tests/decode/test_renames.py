"""Which collection gets a rename event, and events of the server's temporary collections."""

from __future__ import annotations

import json
from typing import Any

import bson
import pytest
from bson import Timestamp

from bench.decode import Schemas
from engine.decode.decoder import Decoder, Renamed
from engine.decode.schema import SchemaOptions
from tests.decode import values

pytestmark = pytest.mark.usefixtures("inner_loops")

TEMPORARY = "tmp.agg_out.7f5c3c5e-8d7e-4f6e-9d2b-0d1f1f1f1f1f"


def event(op: str, collection: str, to: str = "", **more: Any) -> bytes:
    fields: dict[str, Any] = {"_id": {"_data": f"82{op}"}, "operationType": op, "clusterTime": Timestamp(7, 3)}
    fields |= {"ns": {"db": "shop", "coll": collection}} | more
    return bson.encode(fields | ({"to": {"db": "shop", "coll": to}} if to else {}))


def insert(collection: str, n: int) -> bytes:
    return event("insert", collection, documentKey={"_id": n}, fullDocument={"_id": n, "n": n})


@pytest.mark.parametrize(
    ("covered", "source", "told_in"),
    [
        ({"b"}, TEMPORARY, "b"),
        ({"b"}, "a", "b"),
        ({"a"}, "a", "a"),
        ({"a", "b"}, "a", "a"),
        ({"a", "b", TEMPORARY}, TEMPORARY, "b"),
        (set(), "a", "a"),
    ],
)
@pytest.mark.parametrize("raw", [False, True])
def test_a_rename_is_reported_in_the_captured_collections_that_it_ends(
    covered: set[str], source: str, told_in: str, raw: bool
) -> None:
    events = [insert("b", 1), event("rename", source, "b"), insert("b", 2)]
    decoder = Decoder(Schemas(1000), SchemaOptions(raw=raw), ("shop", ""), lambda _, name: name in covered)
    decoded = decoder.decode(*values.as_array(events))
    assert decoded.dead_letters == []
    assert decoded.renames == [Renamed(("shop", source), ("shop", "b"), 7 << 32 | 3)]
    rows = [row for batch in decoded.batches for row in batch.batch.to_pylist()]
    assert all(each.collection == each.batch.column("_cdc_collection")[0].as_py() for each in decoded.batches)
    (rename,) = [row for row in rows if row["_cdc_op"] == "rename"]
    assert rename["_cdc_collection"] == told_in
    assert rename["_cdc_timestamp"] == 7 << 32 | 3
    own = {"ns": {"db": "shop", "coll": source}} if told_in != source else {}
    assert json.loads(rename["_cdc_extra"]) == {"to": {"db": "shop", "coll": "b"}} | own
    assert [row["n"] for row in rows if row["_cdc_op"] == "insert"] == [1, 2]
    if raw:
        assert [row["_cdc_raw"] for row in rows if row["_cdc_op"] == "rename"] == [events[1]]


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("first", [[], [insert("b", 1)]])
def test_events_without_a_namespace_keep_their_place(first: list[bytes], raw: bool) -> None:
    """A rename over the collection, and the invalidate after it: rows of one object, in the order they came."""
    ends = bson.encode({"_id": {"_data": "82z"}, "operationType": "invalidate", "clusterTime": Timestamp(7, 3)})
    events = [*first, event("rename", "a", "b"), ends]
    decoder = Decoder(Schemas(1000), SchemaOptions(raw=raw), ("shop", "b"), lambda _, name: name == "b")
    (batch,) = decoder.decode(*values.as_array(events)).batches
    operations = batch.batch.column("_cdc_op").to_pylist()
    assert operations == [*(["insert"] * len(first)), "rename", "invalidate"]


def test_temporary_collections_have_no_directory_and_no_schema() -> None:
    schemas = Schemas(1000)
    decoder = Decoder(schemas, SchemaOptions(), ("shop", ""))
    events = [insert(TEMPORARY, 1), insert("b", 2), event("create", TEMPORARY), event("dropDatabase", "")]
    decoded = decoder.decode(*values.as_array(events))
    found = {
        (batch.collection, row["_cdc_collection"], row["_cdc_op"], row.get("n"))
        for batch in decoded.batches
        for row in batch.batch.to_pylist()
    }
    assert found == {
        ("", TEMPORARY, "insert", 1),
        ("", TEMPORARY, "create", None),
        ("", "", "dropDatabase", None),
        ("b", "b", "insert", 2),
    }
    assert not schemas.get("shop", TEMPORARY).fields
