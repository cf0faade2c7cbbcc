"""The offsets of the documents of a reply."""

from __future__ import annotations

import struct

import bson
import pytest

from engine.rawbson.elements import MalformedBSON
from engine.rawbson.offsets import document_offsets


@pytest.mark.parametrize("count", [1499, 1500, 9_999, 10_001, 30_000])
def test_offsets_of_a_long_batch_with_misleading_contents(count: int) -> None:
    """Where a document begins may be guessed wrong, but the result is always right."""
    decoys = {"list": [{"a": n} for n in range(3)], "text": "\x03999\x00\x031000\x00", "bin": b"\x032000\x00" * 3}
    documents = [
        bson.encode({"n": n, "pad": "x" * (n % 97)} | (decoys if n % 5 == 0 else {})) for n in range(count)
    ]
    body = b"".join(b"\x03%d\0%b" % (n, document) for n, document in enumerate(documents))
    data = b"head" + struct.pack("<i", len(body) + 5) + body + b"\0" + bytes(64)
    offsets = document_offsets(data, 4)
    assert len(offsets) == count + 1
    for n, document in enumerate(documents):
        assert data[offsets[n] : offsets[n] + len(document)] == document
    broken = bytearray(data)
    broken[int(offsets[count // 3])] ^= 1
    with pytest.raises(MalformedBSON):
        document_offsets(bytes(broken), 4)
