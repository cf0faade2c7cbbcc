"""Resume tokens as real servers write them: kept complete, and in stream order."""

from __future__ import annotations

import bson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.position import (
    Position,
    is_after,
    is_same,
    make_time,
    make_token,
    split_time,
    token_data,
    token_document,
    token_time,
)
from engine.errors import FatalError

# From 6.0.27, each event twice: from a stream without $changeStreamSplitLargeEvent, and from one with it.
INSERT = (
    "826B06585F000000052B022C0100296E5A10049FCE3806862A4EF19CED1A5F4B0CEA9D461E5F6964002B020004",
    "826B06585F000000052B042C0100296E5A10049FCE3806862A4EF19CED1A5F4B0CEA9D463C6F7065726174696F6E54797065003C"
    "696E736572740046646F63756D656E744B657900461E5F6964002B02000004",
)
DROP = (
    "826B06585F000000032B022C0100296E5A10041F4E77F32DE64C568B1F554FCAFA271304",
    "826B06585F000000032B042C0100296E5A10041F4E77F32DE64C568B1F554FCAFA2713463C6F7065726174696F6E54797065003C"
    "64726F70000004",
)
INVALIDATE = (
    DROP[0].replace("296E", "296F"),
    DROP[1].replace("296E", "296F"),
)
POINT = ("826B06585F000000052B0229296E04", "826B06585F000000052B0429296E1404")
UPDATE = (
    "826B06585F000000012B042C0100296E5A10041F4E77F32DE64C568B1F554FCAFA2713463C6F7065726174696F6E54797065003C"
    "7570646174650046646F63756D656E744B657900463C5F6964003C626967000000"
)
WHOLE, FIRST, SECOND = UPDATE + "04", UPDATE + "2904", UPDATE + "2B0204"
IN_ORDER = [(WHOLE, FIRST, SECOND), DROP, INVALIDATE, POINT, INSERT]


@pytest.mark.parametrize("one", range(len(IN_ORDER)))
@pytest.mark.parametrize("other", range(len(IN_ORDER)))
def test_tokens_of_all_versions_sort_in_stream_order(one: int, other: int) -> None:
    for first in IN_ORDER[one]:
        for second in IN_ORDER[other]:
            assert is_after(first, second) == (one > other)
            assert is_same(first, second) == (one == other)


def test_tokens_of_two_versions_at_one_cluster_time_are_not_ordered() -> None:
    """Two shards can write at one cluster time; their order is then by the key."""
    other_key = INSERT[1].replace("461E5F6964002B020000", "461E5F6964002B040000")
    with pytest.raises(FatalError, match="run the previous version once more"):
        is_after(INSERT[0], other_key)
    assert not Position(INSERT[0]).precedes(Position(other_key))
    assert is_after(other_key, INSERT[1])  # decided by one version alone


def test_a_uuid_that_looks_like_a_fragment_is_not_one() -> None:
    head, tail = INSERT[0][: -len("461E5F6964002B020004")], "04"
    one = f"{head}465A5F6964005A1004{'00' * 14}002B00{tail}"
    other = f"{head}465A5F6964005A1004{'00' * 14}002C00{tail}"
    assert is_after(other, one)
    assert not is_same(one, other)


def test_tokens_of_unknown_formats_only_compare_equal() -> None:
    one, other = (make_token(None, bson.encode({"_data": data})) for data in (b"a", b"b"))
    assert is_same(one, one)
    assert token_data(one) == ""
    with pytest.raises(FatalError, match="not in MongoDB's form"):
        is_after(one, other)


def test_an_empty_token_is_before_every_token() -> None:
    assert is_after(INSERT[0], "")
    assert not is_after("", INSERT[0])
    assert is_same("", "")


@given(
    st.one_of(
        st.fixed_dictionaries(
            {"_data": st.text()}, optional={"_typeBits": st.binary(), "more": st.integers(0, 9)}
        ),
        st.dictionaries(st.text("abc_"), st.binary()),
    )
)
def test_a_token_comes_back_byte_for_byte(document: dict[str, object]) -> None:
    raw = bson.encode(document)
    data = document.get("_data")
    assert token_document(make_token(data if isinstance(data, str) else None, raw)) == raw


def test_the_time_is_read_with_and_without_type_bits() -> None:
    whole = make_token(INSERT[0], bson.encode({"_data": INSERT[0], "_typeBits": b"\x81\x80"}))
    assert whole != INSERT[0]
    assert token_time(whole) == token_time(INSERT[0]) == 0x6B06585F00000005
    assert is_same(whole, INSERT[0])


REAL_TOKEN = "826B03B182000003E92B022C0100296E5A1004ED21B6581DEF41E5B19A2FCC3CBF1B8D46645F6964002B020004"


def test_a_token_begins_with_its_cluster_time() -> None:
    assert token_time(REAL_TOKEN) == make_time(0x6B03B182, 0x3E9)
    assert split_time(make_time(7, 8)) == (7, 8)


@pytest.mark.parametrize("token", ["", "82", "81" + "0" * 20, "82zz" + "0" * 20])
def test_tokens_of_unknown_formats_have_no_time(token: str) -> None:
    assert token_time(token) is None


def test_order() -> None:
    start, later = Position(time=5), Position(time=6)
    first, second = Position("82a", 5), Position("82b", 5)
    assert start.precedes(later)
    assert start.precedes(first)
    assert first.precedes(second)
    assert not first.precedes(first)
    assert not first.precedes(later)
    assert not second.precedes(first)
