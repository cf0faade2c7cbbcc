"""Documents and arrays as relaxed Extended JSON, by the compiled code where it is there, and without it."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.decode.cursor import padded
from engine.decode.json import documents_json, values_json
from engine.rawbson import elements as raw
from engine.rawbson import native
from tests.decode import corpus, lake, values
from tests.decode.fuzz import mutate

pytestmark = pytest.mark.usefixtures("inner_loops")


def texts_of(found: Sequence[bytes], kind: int = raw.DOCUMENT) -> Sequence[str | None]:
    """Documents or arrays, as they lie one after another in a reply."""
    data = b"".join(found)
    ends = np.cumsum([len(each) for each in found])
    return values_json(padded(data, len(data)), kind, ends - [len(each) for each in found], ends)


def as_array(document: bytes) -> bytes:
    """An array of the values of a document of a few fields."""
    fields = list(lake.elements_of(document))
    return values.document([values.element(kind, b"%d" % n, value) for n, (kind, _, value) in enumerate(fields)])


@pytest.mark.parametrize("name", sorted(corpus.COLLECTIONS.keys() - {"huge"}))
def test_a_collection(name: str) -> None:
    found = list(corpus.collection(name))[:200]
    texts = texts_of(found)
    assert texts == documents_json(found), "the three ways write the same"
    assert [lake.json_tree(text or "") for text in texts] == [lake.document_tree(each) for each in found]


@settings(max_examples=300)
@given(values.batches())
def test_any_documents_and_arrays(found: list[bytes]) -> None:
    texts = texts_of(found)
    assert texts == documents_json(found)
    for text, each in zip(texts, found, strict=True):
        assert text is None or lake.json_tree(text) == lake.tree_of(0x03, each)
    arrays = [as_array(each) for each in found]
    for text, each in zip(texts_of(arrays, raw.ARRAY), arrays, strict=True):
        assert text is None or lake.json_tree(text) == lake.tree_of(0x04, each)


@settings(max_examples=300)
@given(
    st.lists(st.one_of(st.floats(), st.integers(-(2**53), 2**53).map(float), st.decimals(-9999, 9999, places=2)))
)
def test_doubles(numbers: list[float]) -> None:
    found = [values.document([values.element(0x01, b"d", struct.pack("<d", float(each)))]) for each in numbers]
    texts = texts_of(found)
    assert texts == documents_json(found)
    assert [lake.json_tree(text or "") for text in texts] == [lake.document_tree(each) for each in found]


@settings(max_examples=300)
@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-(2**40), 2**48)))
def test_dates(milliseconds: list[int]) -> None:
    found = [values.document([values.element(0x09, b"t", struct.pack("<q", each))]) for each in milliseconds]
    texts = texts_of(found)
    assert texts == documents_json(found)
    assert [lake.json_tree(text or "") for text in texts] == [lake.document_tree(each) for each in found]


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(st.integers(0, 10**34 + 5) | st.integers(0, 99), st.integers(6130, 6190), st.booleans())
        | st.binary(min_size=16, max_size=16)
    )
)
def test_decimals(numbers: list[tuple[int, int, bool] | bytes]) -> None:
    def packed(number: tuple[int, int, bool] | bytes) -> bytes:
        if isinstance(number, bytes):
            return number
        coefficient, exponent, negative = number
        return (coefficient | exponent << 113 | negative << 127).to_bytes(16, "little")

    found = [values.document([values.element(0x13, b"d", packed(each))]) for each in numbers]
    texts = texts_of(found)
    assert texts == documents_json(found)
    assert [lake.json_tree(text or "") for text in texts] == [lake.document_tree(each) for each in found]


@settings(max_examples=300)
@given(st.lists(st.text() | st.characters(min_codepoint=0, max_codepoint=0x9F, exclude_categories=())))
def test_text(strings: list[str]) -> None:
    encoded = [each.encode("utf-8", "surrogatepass") for each in strings]
    found = [values.document([values.element(0x02, b"s", values.sized(each))]) for each in encoded]
    texts = texts_of(found)
    assert texts == documents_json(found)
    assert [lake.json_tree(text or "") for text in texts] == [lake.document_tree(each) for each in found]


def test_a_buffer_that_ends_with_the_value() -> None:
    """The compiled code reads a few bytes past a value, so it leaves this one alone."""
    document = values.document([values.element(0x10, b"n", struct.pack("<i", 7)), values.element(0x0A, b"z", b"")])
    bounds = np.array([0], np.int64), np.array([len(document)], np.int64)
    assert values_json(document, raw.DOCUMENT, *bounds) == ['{"n":7,"z":null}']


def test_mutated_documents() -> None:
    rng = random.Random(3)
    sources = [
        each for name in corpus.COLLECTIONS if name != "huge" for each in list(corpus.collection(name))[:20]
    ]
    for _ in range(300):
        found = [mutate(rng, each) if rng.random() < 0.3 else each for each in rng.choices(sources, k=20)]
        assert texts_of(found) == documents_json(found)


@pytest.mark.parametrize("levels", [3, 63, 64, 65, 150])
@pytest.mark.parametrize("names", [2, 255, 256, 257, 3000])
def test_many_levels_and_names(levels: int, names: int) -> None:
    inner = values.document([values.element(0x10, b"n%d" % n, struct.pack("<i", n)) for n in range(names)])
    for _ in range(levels):
        inner = values.document([values.element(0x03, b"in", inner), values.element(0x0A, b"z", b"")])
    assert texts_of([inner, inner]) == documents_json([inner, inner])


def test_what_is_plain_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    if native.library is None:
        pytest.skip("without the compiled part")
    found = [*corpus.collection("orders")][:50]

    def refuse(documents: Sequence[bytes]) -> list[str | None]:
        raise AssertionError(f"{len(documents)} documents are not compiled")

    monkeypatch.setattr("engine.decode.json.documents_json", refuse)
    assert all(texts_of(found))
