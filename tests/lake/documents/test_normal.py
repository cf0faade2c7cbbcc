"""The form in which documents are compared leaves out what is not in the lake."""

from __future__ import annotations

import bson
from bson import Decimal128

from engine.config.tree import SchemaConfig
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


def test_decimals_are_compared_by_value_where_a_column_has_a_scale() -> None:
    one, other = bson.encode({"_id": 1, "n": Decimal128("1.50")}), bson.encode({"_id": 1, "n": Decimal128("1.5")})
    scaled = normal_of(SchemaConfig(overrides={"orders.n": "decimal128(38, 2)"}), "orders")
    assert scaled(one) == scaled(other)
    plain = normal_of(SchemaConfig(), "orders")
    assert plain(one) != plain(other)
