"""The form in which documents are compared leaves out what is not in the lake."""

from __future__ import annotations

import re
from typing import Any

import bson
import pytest
from bson import Decimal128
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config.tree import SchemaConfig
from engine.decode.protect_rows import Rows, Rule
from engine.lake.documents.normal import normal_of


def test_dropped_and_protected_fields_are_left_out() -> None:
    overrides = {"orders.secret": "drop", "orders.a.b": "drop", "others.c": "drop", "orders.a": "json"}
    config = SchemaConfig(overrides=overrides, protect={"*.email": "mask", "orders.card.number": "hash"})
    normal = normal_of(config, "orders")
    one = {
        "_id": 1,
        "secret": 1,
        "a": [{"b": 1, "d": 2}],
        "c": 3,
        "email": "x",
        "card": {"number": "1", "type": "v"},
    }
    other = {"_id": 1, "a": [{"d": 2}], "c": 3, "card": {"type": "v", "number": "***"}}
    assert normal(bson.encode(one)) == normal(bson.encode(other))
    for change in ({"c": 4}, {"a": [{"d": 3}]}, {"card": {"type": "w"}}):
        assert normal(bson.encode(one)) != normal(bson.encode(other | change))


@pytest.mark.parametrize("name", ["tmp.agg_out.0a1b", "tmpAbCdE.renameCollection", ""])
def test_in_a_temporary_collection_everything_protected_is_left_out(name: str) -> None:
    """It is about to get another name, and the lake has it protected by all rules."""
    normal = normal_of(SchemaConfig(protect={"orders.email": "mask", "people.card": "drop"}), name)
    one = bson.encode({"_id": 1, "email": "x", "card": "y", "n": 1})
    assert bson.decode(normal(one)) == {"_id": 1, "n": 1}


def test_decimals_are_compared_by_value_where_a_column_has_a_scale() -> None:
    one, other = bson.encode({"_id": 1, "n": Decimal128("1.50")}), bson.encode({"_id": 1, "n": Decimal128("1.5")})
    scaled = normal_of(SchemaConfig(overrides={"orders.n": "decimal128(38, 2)"}), "orders")
    assert scaled(one) == scaled(other)
    plain = normal_of(SchemaConfig(), "orders")
    assert plain(one) != plain(other)


NAMES = st.sampled_from(["a", "b", "c", "0", "1", "a.b", "b.c", "a.b.c", "a.0.b", ""])
PATHS = st.lists(st.sampled_from(["a", "b", "c", "0", "1"]), min_size=1, max_size=3).map(".".join)
VALUES = st.recursive(
    st.just(None),
    lambda below: st.dictionaries(NAMES, below, max_size=4) | st.lists(below, max_size=3),
    max_leaves=12,
)


def with_secrets(value: Any, numbers: list[int]) -> Any:
    """With a string that is nowhere else in place of each null."""
    if isinstance(value, dict):
        return {name: with_secrets(each, numbers) for name, each in value.items()}
    if isinstance(value, list):
        return [with_secrets(each, numbers) for each in value]
    numbers.append(len(numbers))
    return f"secret-{len(numbers):03}"


@given(
    shape=st.dictionaries(NAMES, VALUES, max_size=5),
    paths=st.dictionaries(PATHS, st.sampled_from(["mask", "drop"])),
)
@settings(max_examples=500, deadline=None)
def test_what_is_protected_is_left_out_and_nothing_else(shape: dict[str, Any], paths: dict[str, str]) -> None:
    """As the decoder's reference protects it: in names with dots, in arrays, with or without an index."""
    document = bson.encode(with_secrets(shape, []))
    rule = Rule()
    for path, action in paths.items():
        rule.add(path, action)
    protected = Rows(b"key").document(document, 0, (rule,)) or document
    normal = normal_of(
        SchemaConfig(protect={f"orders.{path}": action for path, action in paths.items()}), "orders"
    )
    assert normal(protected) == normal(document)
    assert sorted(secrets_in(normal(document))) == sorted(secrets_in(protected))


def secrets_in(document: bytes) -> list[bytes]:
    return re.findall(rb"secret-\d+", document)
