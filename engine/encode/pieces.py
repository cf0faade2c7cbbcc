"""Batches in pieces: files other than Parquet are assembled in memory, which takes several times their size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

# Measured: half of it makes wide rows slower, because each column costs some calls in each piece, and twice as
# much makes nothing faster.
_PIECE_BYTES = 2**20
# What a value of a struct takes besides its name: quotes, a colon, a comma, and "null".
_MARKS = 8


def pieces(batches: Sequence[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The rows of the batches, so few at a time that their text is not large."""
    for batch in batches:
        size = sum(map(_text_bytes, batch.columns))
        rows = max(1, batch.num_rows * _PIECE_BYTES // max(1, size))
        yield from (batch.slice(at, rows) for at in range(0, batch.num_rows, rows))


def _text_bytes(array: pa.Array) -> int:
    """About how long a column is as text; in a struct each value has its name with it, and nulls do so too."""
    if pa.types.is_struct(array.type):
        names = sum(len(field.name) + _MARKS for field in array.type)
        return len(array) * names + sum(
            _text_bytes(array.field(number)) for number in range(array.type.num_fields)
        )
    if pa.types.is_list(array.type):
        return int(array.nbytes) if pa.types.is_primitive(array.type.value_type) else _text_bytes(array.flatten())
    return int(array.nbytes)


def content(array: pa.Array) -> npt.NDArray[np.uint8]:
    """The bytes of all values of a string or binary array, one after the other."""
    _, offsets, data = array.buffers()
    start, end = np.frombuffer(offsets, np.int32)[[array.offset, array.offset + len(array)]]
    return np.frombuffer(data or b"", np.uint8)[start:end]


def regrouped(array: pa.Array, items: pa.Array) -> pa.Array:
    """A list array with other items in place of its own, as ``flatten`` has them."""
    ends = np.cumsum(pc.fill_null(pc.list_value_length(array), 0))
    return pa.ListArray.from_arrays(pa.array(np.append(0, ends), pa.int32()), items, mask=array.is_null())
