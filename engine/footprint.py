"""What record batches take in memory, and how many become one.

``nbytes`` counts values alone. An array of one value takes far more than that value, and a batch of few rows has
as many arrays as a large one: with 1,000 columns, 0.6 MB if it was read from one IPC message, and 1.6 MB if its
arrays were made one by one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import pyarrow as pa

_ARRAY_BYTES = 1600


def held_bytes(batch: pa.RecordBatch) -> int:
    """About how much memory a batch takes at most, in bytes: its values, and its arrays themselves."""
    return int(batch.nbytes) + arrays_bytes(batch.schema)


def arrays_bytes(schema: pa.Schema) -> int:
    """What the arrays of a batch take besides its values, however few these are."""
    return _ARRAY_BYTES * sum(_arrays(field.type) for field in schema)


def _arrays(type_: pa.DataType) -> int:
    return 1 + sum(_arrays(type_.field(number).type) for number in range(type_.num_fields))


def joined(
    batches: Iterable[pa.RecordBatch], promote: Literal["default", "permissive"] = "default"
) -> list[pa.RecordBatch]:
    """The same rows in one batch (none if there are no rows), with nulls where a batch lacks a column.

    Args:
        promote: as in ``pyarrow.concat_tables``; "permissive" also adds members to structs.
    """
    tables = [pa.Table.from_batches([each]) for each in batches]
    found: list[pa.RecordBatch] = pa.concat_tables(tables, promote_options=promote).combine_chunks().to_batches()
    return found
