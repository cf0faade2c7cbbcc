"""JSON lines, assembled by column: the texts of a struct or a list are joined from those of its members.

A value that JSON has no type for is text: a time is RFC 3339 (for years after 9999 or before 1, its milliseconds
as an integer), binary is base64, and a decimal is its digits.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import lru_cache

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.encode.compression import CompressedFile
from engine.encode.pieces import content, pieces, regrouped

_YEAR_1_MS, _YEAR_10000_MS = -62135596800000, 253402300800000
_ENCODER = msgspec.json.Encoder()
# What JSON escapes in strings. The backslash is first, because the escapes of the others contain one.
_ESCAPES = {code: _ENCODER.encode(chr(code)).decode()[1:-1] for code in (ord("\\"), ord('"'), *range(ord(" ")))}


class JsonFile:
    """One JSON object per row; null columns are left out."""

    def __init__(self, file: CompressedFile, schema: pa.Schema) -> None:
        self._file = file
        self._starts = {field.name: f",{_key(field.name)}" for field in schema}

    def write(self, batches: Sequence[pa.RecordBatch]) -> None:
        """Write batches."""
        for batch in pieces(batches):
            # The first comma becomes a brace. A name for each step would keep it all, and a row may have 16 MB.
            lines = _joined(pc.binary_replace_slice(self._members(batch), 0, 1, "{"), "}\n")
            self._file.write(content(lines).tobytes())

    def _members(self, batch: pa.RecordBatch) -> pa.Array:
        """The members of each row, with a comma before each."""
        have = dict(zip(batch.schema.names, batch.columns, strict=True))
        members = [
            json_texts(have[name], start)
            for name, start in self._starts.items()
            if name in have and have[name].null_count < batch.num_rows
        ]
        # Rows of nothing but nulls would be missing from the result (pyarrow 26), hence the empty texts.
        empty = pa.repeat("", batch.num_rows)
        return pc.binary_join_element_wise(empty, *members, "", null_handling="skip")

    def close(self, _: Mapping[str, str]) -> None:
        """End the file; the format has no place for metadata."""
        self._file.close()


def json_texts(array: pa.Array, before: str = "", after: str = "") -> pa.Array:
    """Each value as JSON, between two other texts; null where it is null."""
    type_ = array.type
    if pa.types.is_struct(type_):
        members = [
            _member(array.field(number), f"{',' if number else ''}{_key(field.name)}")
            for number, field in enumerate(type_)
        ]
        return _joined(pc.if_else(array.is_valid(), f"{before}{{", None), *members, f"}}{after}")
    if pa.types.is_list(type_):
        items = pc.fill_null(json_texts(array.flatten()), "null")
        return _joined(f"{before}[", pc.binary_join(regrouped(array, items), ","), f"]{after}")
    if pa.types.is_timestamp(type_):
        return _joined(before, times(array, '"'), after)
    if pa.types.is_string(type_):
        return _joined(f'{before}"', _escaped(array), f'"{after}')
    if is_binary(type_):
        return _joined(f'{before}"', base64(array), f'"{after}')
    if pa.types.is_decimal(type_):
        return _joined(f'{before}"', array.cast(pa.string()), f'"{after}')
    return _joined(before, _doubles(array) if pa.types.is_floating(type_) else array.cast(pa.string()), after)


def _key(name: str) -> str:
    return f"{_ENCODER.encode(name).decode()}:"


def _member(array: pa.Array, start: str) -> pa.Array | str:
    """A member of a struct, where null is a text too; one text if all are null."""
    null = f"{start}null"
    return null if array.null_count == len(array) else pc.fill_null(json_texts(array, start), null)


def _joined(*parts: pa.Array | str) -> pa.Array:
    """Texts one after the other; null where one of them is."""
    texts = [_constant(part) if isinstance(part, str) else part for part in parts if part != ""]
    return pc.binary_join_element_wise(*texts, _constant("")) if len(texts) > 1 else texts[0]


@lru_cache(4096)
def _constant(text: str) -> pa.StringScalar:
    """Text for pyarrow's functions, which would take longer to convert it than to join it with some values."""
    return pa.scalar(text)


def _escaped(array: pa.Array) -> pa.Array:
    data = content(array)
    special = data < ord(" ")
    special |= data == ord('"')
    special |= data == ord("\\")
    found = np.unique(data[special]).tolist()
    for code, escape in _ESCAPES.items():
        if code in found:
            array = pc.replace_substring(array, chr(code), escape)
    return array


def _doubles(array: pa.Array) -> pa.Array:
    """The shortest texts that are these doubles: a whole number is a double too, and so has ``.0``."""
    texts = array.cast(pa.string())
    if pc.any(pc.equal(array, pc.trunc(array))).as_py():
        texts = _joined(texts, pc.if_else(pc.match_substring_regex(texts, "[.e]"), _constant(""), _constant(".0")))
    finite = pc.is_finite(array)
    if pc.all(finite).as_py() is not False:
        return texts
    infinite = pc.if_else(pc.greater(array, 0), "Infinity", "-Infinity")
    names = pc.if_else(pc.is_nan(array), "NaN", infinite)
    return pc.if_else(finite, texts, _joined('{"$numberDouble":"', names, '"}'))


def times(array: pa.Array, quote: str = "") -> pa.Array:
    """Milliseconds since 1970 as RFC 3339 with these quotes, or as integers where it has no such year."""
    numbers = array.cast(pa.int64())
    has_year = pc.and_(pc.greater_equal(numbers, _YEAR_1_MS), pc.less(numbers, _YEAR_10000_MS))
    shown = pc.if_else(has_year, numbers, None).cast(pa.timestamp("ms")).cast(pa.string())
    texts = _joined(quote, pc.replace_substring(shown, " ", "T"), f"Z{quote}")
    return pc.coalesce(texts, numbers.cast(pa.string()))


def base64(array: pa.Array) -> pa.Array:
    """Binary values as base64, encoded as one: each is followed by zeros up to a multiple of three bytes."""
    lengths = pc.fill_null(pc.binary_length(array), 0).to_numpy().astype(np.int64)
    zeros = -lengths % 3
    padding = pa.array([b"", b"\0", b"\0\0"]).take(pa.array(zeros))
    padded = pc.binary_join_element_wise(array.cast(pa.binary()), padding, b"")
    data = np.frombuffer(bytearray(b64encode(content(padded).data)), np.uint8)
    ends = np.cumsum((lengths + zeros) // 3 * 4)
    data[ends[zeros > 0] - 1] = data[ends[zeros > 1] - 2] = ord("=")
    offsets = np.append(0, ends).astype(np.int32)
    texts = pa.StringArray.from_buffers(len(array), pa.py_buffer(offsets), pa.py_buffer(data))
    return pc.if_else(array.is_valid(), texts, None)


def is_binary(type_: pa.DataType) -> bool:
    """Whether values of this type are bytes."""
    return bool(pa.types.is_binary(type_) or pa.types.is_fixed_size_binary(type_))
