"""Hypothesis strategies for documents of every BSON type and shape, made byte by byte."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

# Type and bytes of a value.
Value = tuple[int, bytes]


def element(kind: int, name: bytes, value: bytes) -> bytes:
    return bytes([kind]) + name + b"\0" + value


def document(elements: list[bytes]) -> bytes:
    body = b"".join(elements)
    return struct.pack("<i", len(body) + 5) + body + b"\0"


def sized(text: bytes) -> bytes:
    return struct.pack("<i", len(text) + 1) + text + b"\0"


_utf8 = st.text(max_size=8).map(str.encode)
_ascii = st.text('ab "\\\n\x00\x1f', max_size=6).map(str.encode)
_broken = st.sampled_from([b"\xff", b"a\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80", b"\x80"])
_strings = st.one_of(_ascii, _utf8, _utf8, _ascii, _broken)
_c_strings = st.one_of(_ascii, _utf8, _broken).map(lambda text: text.replace(b"\0", b""))
_doubles = st.one_of(
    st.floats(width=64),
    st.integers(-(2**54), 2**54).map(float),
    st.sampled_from([0.0, -0.0, 1.0, 1e22, 2.0**63, -(2.0**63), 2.0**31, 9007199254740993.0]),
).map(lambda value: struct.pack("<d", value))
_nans = st.sampled_from([b"\1\0\0\0\0\0\xf8\x7f", b"\0\0\0\0\0\0\xf8\xff", b"\1\0\0\0\0\0\xf0\x7f"])
_int32 = st.integers(-(2**31), 2**31 - 1).map(lambda value: struct.pack("<i", value))
_int64 = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.integers(-9, 9), st.sampled_from([2**53 + 1, 2**63 - 1, -(2**63), 2**31])
).map(lambda value: struct.pack("<q", value))
_dates = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 4 * 10**12),
    st.sampled_from([0, -1, 253402300800000]),
    st.builds(
        lambda sign, beyond: sign * (9_223_372_036_854_775 + beyond), st.sampled_from([-1, 1]), st.integers(-1, 1)
    ),
).map(lambda value: struct.pack("<q", value))
_decimals = st.one_of(
    st.tuples(st.integers(0, 10**18), st.integers(6170, 6178), st.sampled_from([0, 1 << 63])).map(
        lambda each: struct.pack("<QQ", each[0], each[1] << 49 | each[2])
    ),
    st.binary(min_size=16, max_size=16),
    st.sampled_from(
        [struct.pack("<QQ", low, 0x7C << 56 | high) for low in (0, 5) for high in (0, 1 << 57, 1 << 63)]
    ),
)


@st.composite
def binaries(draw: st.DrawFn) -> bytes:
    subtype = draw(st.sampled_from([0, 0, 0, 2, 3, 4, 4, 5, 128]))
    content = draw(st.binary(min_size=16, max_size=16) if subtype == 4 else st.binary(max_size=6))
    if subtype == 2 and draw(st.integers(0, 3)):
        content = struct.pack("<i", len(content)) + content
    return struct.pack("<iB", len(content), subtype) + content


_SCALARS: dict[int, st.SearchStrategy[bytes]] = {
    0x01: st.one_of(_doubles, _doubles, _doubles, _nans),
    0x02: _strings.map(sized),
    0x05: binaries(),
    0x06: st.just(b""),
    0x07: st.binary(min_size=12, max_size=12),
    0x08: st.sampled_from([b"\0", b"\1", b"\0", b"\1", b"\2"]),
    0x09: _dates,
    0x0A: st.just(b""),
    0x0B: st.tuples(_c_strings, st.sampled_from([b"", b"i", b"imx", b"xi", b"zz"])).map(
        lambda each: each[0] + b"\0" + each[1] + b"\0"
    ),
    0x0C: st.tuples(_strings, st.binary(min_size=12, max_size=12)).map(lambda each: sized(each[0]) + each[1]),
    0x0D: _strings.map(sized),
    0x0E: _strings.map(sized),
    0x10: _int32,
    0x11: st.binary(min_size=8, max_size=8),
    0x12: _int64,
    0x13: _decimals,
    0x7F: st.just(b""),
    0xFF: st.just(b""),
}
_COMMON = (0x01, 0x02, 0x10, 0x12, 0x08, 0x09, 0x07, 0x13, 0x05, 0x0A)
NAMES = (b"a", b"b", b"c", b"d", b"e")
_ODD_NAMES = (
    b"", b".", b"a.b", b"\\", b"_cdc_op", b"_cdc_x", b"$oid", b"$date", b"x" * 40, b"x" * 41, "n\u00e4me".encode(),
    b"\xff", b"$ref", b"$id", b"longer_than_eight", b'q"uote',
)  # fmt: skip
# Names that some reader confuses with one another, a metadata column, or a directory of the lake.
_ALIKE = (
    b"A", b"B", b"B__2", b"b__2", b"_id", b"_ID", b"_CDC_op", b"cdc_date", b"CDC_HOUR", b"i", b"I", b"ss",
    *(each.encode() for each in ("\u0131", "\u0130", "\u00c4", "\u00e4", "a\u0308", "\u00df")),
)  # fmt: skip
names = st.one_of(
    st.sampled_from(NAMES),
    st.sampled_from(NAMES),
    st.sampled_from(NAMES),
    st.sampled_from(_ODD_NAMES),
    st.sampled_from(_ALIKE),
)


def _of_kind(kind: int) -> st.SearchStrategy[Value]:
    return _SCALARS[kind].map(lambda value: (kind, value))


scalars: st.SearchStrategy[Value] = st.one_of(
    st.sampled_from(_COMMON).flatmap(_of_kind), st.sampled_from(sorted(_SCALARS)).flatmap(_of_kind)
)


def arrays(values: st.SearchStrategy[Value]) -> st.SearchStrategy[Value]:
    counted = st.one_of(
        st.lists(values, max_size=4),
        st.sampled_from(_COMMON).flatmap(lambda kind: st.lists(_of_kind(kind), max_size=5)),
        st.tuples(st.sampled_from([0x01, 0x10, 0x0A, 0x02]), st.integers(20, 130)).flatmap(
            lambda each: _of_kind(each[0]).map(lambda value: [value] * each[1])
        ),
    ).map(lambda found: [element(kind, b"%d" % n, value) for n, (kind, value) in enumerate(found)])
    wrong = st.lists(st.tuples(names, values), max_size=2).map(
        lambda found: [element(kind, name, value) for name, (kind, value) in found]
    )
    often: list[st.SearchStrategy[list[bytes]]] = [counted] * 12
    return st.one_of(*often, wrong).map(lambda found: (0x04, document(found)))


@st.composite
def fields(draw: st.DrawFn, values: st.SearchStrategy[Value]) -> bytes:
    found = draw(st.lists(st.tuples(names, values), max_size=5))
    if draw(st.integers(0, 19)):  # mostly each name once
        found = list({name: (name, value) for name, value in found}.values())
    return document([element(kind, name, value) for name, (kind, value) in found])


def _nested(values: st.SearchStrategy[Value]) -> st.SearchStrategy[Value]:
    scoped = st.tuples(_strings, fields(values)).map(lambda each: sized(each[0]) + each[1])
    code = scoped.map(lambda each: (0x0F, struct.pack("<i", len(each) + 4) + each))
    inner = fields(values).map(lambda each: (0x03, each))
    return st.one_of(inner, inner, arrays(values), arrays(values), code)


values: st.SearchStrategy[Value] = st.recursive(scalars, _nested, max_leaves=12)
documents: st.SearchStrategy[bytes] = fields(values)


@st.composite
def batches(
    draw: st.DrawFn, of: Callable[[st.SearchStrategy[Value]], st.SearchStrategy[bytes]] = fields
) -> list[bytes]:
    """Documents of a few shapes: several drawn ones, each repeated, in any order."""
    few = draw(st.lists(of(values), min_size=1, max_size=6))
    picks = draw(st.lists(st.integers(0, len(few) - 1), min_size=1, max_size=40))
    return [few[pick] for pick in picks]


def as_array(found: list[bytes]) -> tuple[bytes, Any]:
    """Documents concatenated as in a reply, and their offsets, including the end of the last."""
    import numpy as np

    data, offsets = b"junk", []
    for number, each in enumerate(found):
        data += element(0x03, b"%d" % number, b"")
        offsets.append(len(data))
        data += each
    return data, np.array([*offsets, len(data)], np.int64)
