"""Which documents are the same to the lake."""

from __future__ import annotations

import struct
from typing import Any

import bson
import pytest
from bson import Code, Decimal128, Int64
from hypothesis import given, settings

from engine.lake.documents.comparison import normal_form
from tests.decode import values
from tests.decode.lake import document_tree

UNDEFINED = values.document([values.element(0x06, b"a", b"")])
SAME: list[list[Any]] = [
    [{"a": 1}, {"a": Int64(1)}, {"a": 1.0}],
    [{"a": 0}, {"a": 0.0}],
    [{"a": -0.0}],
    [{"a": 2**53 + 1}],
    [{"a": 2.0**53}],
    [{"a": 2.0**63}],
    [{"a": -(2.0**63)}, {"a": Int64(-(2**63))}],
    [{"a": float("nan")}],
    [{"a": float("inf")}],
    [{"a": Decimal128("1")}],
    [{"a": Decimal128("1.0")}],
    [{}, {"a": None}, UNDEFINED, {"b": None, "a": None}],
    [{"a": {}}, {"a": {"x": None}}],
    [{"a": [None]}, {"a": [None]}],
    [{"a": []}],
    [{"a": [1, 2]}, {"a": [1.0, Int64(2)]}],
    [{"a": [2, 1]}],
    [{"a": {"x": 1, "y": 2}}, {"a": {"y": 2, "x": 1}}],
    [{"a": True}],
    [{"a": "1"}],
    [{"a": Code("f()", {"x": 1, "y": None})}, {"a": Code("f()", {"x": 1.0})}],
]


def test_what_is_the_same_and_what_is_not() -> None:
    groups = [
        {normal_form(each if isinstance(each, bytes) else bson.encode(each)) for each in group} for group in SAME
    ]
    assert [len(group) for group in groups] == [1] * len(SAME)
    assert len(set().union(*groups)) == len(SAME)


@given(values.batches())
@settings(max_examples=20, deadline=None)
def test_two_documents_are_the_same_if_their_trees_are(found: list[bytes]) -> None:
    different = list(dict.fromkeys(found))
    for one in different:
        assert document_tree(normal_form(one)) == document_tree(one)
        assert normal_form(normal_form(one)) == normal_form(one)
        for other in different:
            assert (normal_form(one) == normal_form(other)) == (document_tree(one) == document_tree(other))


@pytest.mark.parametrize(
    ("text", "same"),
    [("1", 1), ("1.00", Int64(1)), ("2.5", 2.5), ("25E-1", 2.5), ("0.00", 0), ("1E+3", 1000.0), ("-0.0", -0.0)],
)
def test_decimals_by_value(text: str, same: Any) -> None:
    one, other = (bson.encode({"a": each}) for each in (Decimal128(text), same))
    assert normal_form(one) != normal_form(other)
    if text != "-0.0":  # a column of Decimal128 has a zero without a sign
        assert normal_form(one, decimals=True) == normal_form(other, decimals=True)


@pytest.mark.parametrize(
    "broken", [b"", b"\5\0\0\0\1", struct.pack("<i", 9) + b"\x10a\0\0\0", b"\x08\0\0\0\x99a\0\0"]
)
def test_what_is_not_bson_is_an_error(broken: bytes) -> None:
    with pytest.raises(ValueError, match=r"BSON|document|found"):
        normal_form(broken)
