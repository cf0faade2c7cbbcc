"""Whole collections decoded and converted back, in batches of a server's size."""

from __future__ import annotations

from collections.abc import Iterator

import bson
import pytest

from bench.decode import Schemas
from engine.decode import rowwise
from engine.decode.decoder import Decoder
from engine.decode.json import documents_json
from engine.decode.schema import SchemaOptions
from tests.decode import corpus, lake, values
from tests.decode.test_properties import milliseconds, rows_of

BATCH = 300


def batches(found: list[bytes]) -> Iterator[list[bytes]]:
    return (found[at : at + BATCH] for at in range(0, len(found), BATCH))


@pytest.mark.parametrize("options", [SchemaOptions(), SchemaOptions(max_depth=8, max_fields=5000)], ids=["4", "8"])
@pytest.mark.parametrize("name", sorted(corpus.COLLECTIONS))
def test_a_collection_comes_back(name: str, options: SchemaOptions) -> None:
    schemas = Schemas(options.max_fields)
    decoder = Decoder(schemas, options, ("db", name))
    for found in batches(list(corpus.collection(name))):
        data, offsets = values.as_array(found)
        decoded = decoder.decode_documents(data, offsets)
        assert not decoded.dead_letters
        batch = decoded.batches[0].batch
        schema = schemas.get("db", name)
        for document, row in zip(found, rows_of(batch), strict=True):
            assert lake.document_of(row, schema.fields) == lake.document_tree(document)
        by_row, lost = rowwise.columns([rowwise.whole(each) for each in found], schema.fields)
        for column, array in by_row.items():
            assert milliseconds(array).equals(milliseconds(batch.column(column))), column
        rescued = [rowwise.object_json(each.values) if each.values else None for each in lost]
        names = batch.schema.names
        has = "_cdc_rescued" in names
        assert (batch.column("_cdc_rescued").to_pylist() if has else [None] * len(found)) == rescued


@pytest.mark.parametrize("name", sorted(corpus.COLLECTIONS.keys() - {"huge"}))
def test_json_of_a_collection(name: str) -> None:
    """One at a time and all at once, both equal to the original."""
    found = list(corpus.collection(name))[:BATCH]
    texts = documents_json(found)
    assert texts == [documents_json([each])[0] for each in found]
    for text, document in zip(texts, found, strict=True):
        assert text is not None
        assert lake.json_tree(text) == lake.document_tree(document)


def test_trees_agree_with_the_driver() -> None:
    """These tests compare trees, and a mistake in those could hide one in the decoder."""
    for name in ("tiny", "places", "thousand_fields"):
        for document in list(corpus.collection(name))[:50]:
            assert lake.document_tree(document) == _tree(bson.decode(document))


def _tree(value: object) -> lake.Tree:
    match value:
        case dict():
            return {name: _tree(each) for name, each in value.items()}
        case list():
            return [_tree(each) for each in value]
        case bool():
            return "bool", int(value)
        case int() | float():
            return lake.number(value)
        case str():
            return "string", value
    raise AssertionError(value)
