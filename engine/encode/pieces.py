"""What the formats assembled by column share: batches in pieces, and the buffers of arrays.

A file other than Parquet is assembled in memory, where it takes several times its size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

# Each column costs some calls for each piece. Measured with documents of 200 fields: twice as much saves up to a
# third of the time, and takes 34 MiB of memory instead of 15.
_PIECE_BYTES = 2**21
# What a member of an object takes besides its name: quotes, a colon, a comma, and "null".
_MARKS = 8


def pieces(batches: Sequence[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The rows of the batches, so few at a time that their text is not large."""
    for batch in batches:
        size = sum(
            (len(column) - column.null_count) * (len(name) + _MARKS) + _text_bytes(column)
            for name, column in zip(batch.schema.names, batch.columns, strict=True)
        )
        rows = max(1, batch.num_rows * _PIECE_BYTES // max(1, size))
        yield from (batch.slice(at, rows) for at in range(0, batch.num_rows, rows))


def _text_bytes(array: pa.Array) -> int:
    """About how long the values are as text, in which a struct has the names of all its members, null or not."""
    if pa.types.is_struct(array.type):
        names = sum(len(field.name) + _MARKS for field in array.type)
        return len(array) * names + sum(_text_bytes(array.field(at)) for at in range(array.type.num_fields))
    return _text_bytes(array.flatten()) if pa.types.is_list(array.type) else int(array.nbytes)


def content(array: pa.Array) -> npt.NDArray[np.uint8]:
    """The bytes of all values of a string or binary array, one after the other."""
    if not len(array):
        return np.empty(0, np.uint8)
    _, offsets, data = array.buffers()
    start, end = np.frombuffer(offsets, np.int32)[[array.offset, array.offset + len(array)]]
    return np.frombuffer(data or b"", np.uint8)[start:end]


def regrouped(array: pa.Array, items: pa.Array) -> pa.Array:
    """A list array with other items in place of its own, in the order in which ``flatten`` has those."""
    ends = np.cumsum(pc.fill_null(pc.list_value_length(array), 0))
    return pa.ListArray.from_arrays(pa.array(np.append(0, ends), pa.int32()), items, mask=array.is_null())
