"""Batches put together: fewer, with the same rows."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from bench.decode import Schemas
from engine.decode.schema import SchemaOptions
from engine.lake.batches import combined
from engine.lake.documents.inverse import documents
from engine.lake.folding.spill import ID, LATER, TIME, Parts
from tests.decode import values
from tests.decode.lake import document_tree
from tests.lake.documents.test_inverse import landed


@given(found=values.batches())
@settings(max_examples=60, deadline=None)
def test_the_documents_are_the_same(found: list[bytes]) -> None:
    """Whatever fields they gain from one file to the next, at any depth."""
    options = SchemaOptions()
    schemas = Schemas(options.max_fields)
    files = [landed([each], options, schemas) for each in found]
    after = [document for batch in combined(files) for document in documents(batch)]
    assert list(map(document_tree, after)) == list(map(document_tree, found))


def test_small_files_of_growing_documents_are_few_batches() -> None:
    options = SchemaOptions()
    schemas = Schemas(options.max_fields)
    nested = [values.document([values.element(0x10, b"n%d" % n, bytes(4))]) for n in range(60)]
    found = [values.document([values.element(0x03, b"outer", each)]) for each in nested]
    files = [
        landed([each], options, schemas).replace_schema_metadata({"file": str(n)}) for n, each in enumerate(found)
    ]
    (batch,) = combined(files)
    assert list(map(document_tree, documents(batch))) == list(map(document_tree, found))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.field("a", pa.int64()), pa.field("a", pa.float64())),
        (pa.field("a", pa.int64()), pa.field("a", pa.int64(), metadata={"bson.name": "A"})),
        (pa.field("a", pa.struct([("b", pa.int64())])), pa.field("a", pa.struct([("b", pa.string())]))),
        (pa.field("a", pa.list_(pa.int64())), pa.field("a", pa.list_(pa.float64()))),
        (pa.field("_cdc_seq", pa.int64()), pa.field("a", pa.int64())),  # of two versions
    ],
)
def test_rows_that_mean_something_else_stay_apart(one: pa.Field, other: pa.Field) -> None:
    given = [pa.record_batch([pa.nulls(1, each.type)], schema=pa.schema([each])) for each in (one, other)]
    for order in (given, given[::-1]):
        assert [each.schema for each in combined(order)] == [each.schema for each in order]


def test_types_that_never_meet_in_two_batches_stay_apart() -> None:
    """A batch without a column is of every type; what was before it still counts."""
    types = [pa.int64(), None, pa.float64(), None, pa.int64()]
    batches = [
        pa.record_batch({"b": [n]} if type_ is None else {"b": [n], "a": pa.array([n], type_)})
        for n, type_ in enumerate(types)
    ]
    found = list(combined(batches))
    assert [each.column("a").to_pylist() for each in found] == [[0, None], [2.0, None], [4]]
    assert [each.schema.field("a").type for each in found] == [pa.int64(), pa.float64(), pa.int64()]


def test_what_arrays_take_counts_as_memory(tmp_path: Path) -> None:
    """A row in many columns takes far more than its values."""
    numbers = count()
    parts = Parts(tmp_path, 2**20, lambda ids: np.array([next(numbers) % 8 for _ in ids]))
    own = {ID: ["1"], TIME: [1], LATER: [False], "_cdc_op": ["read"]}
    row = pa.record_batch(own | {f"c{n}": [n] for n in range(100)})
    added = 0
    while not parts.spilled and added < 1000:
        parts.add(row)
        added += 1
    assert parts.spilled, f"{added} rows were held"
