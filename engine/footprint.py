"""What record batches take in memory.

``nbytes`` counts values alone. An array of one value takes far more than that value, and a batch of few rows has
as many arrays as a large one: with 1,000 columns, 0.6 MB if it was read from one IPC message, and 1.6 MB if its
arrays were made one by one.
"""

from __future__ import annotations

import pyarrow as pa

ARRAY_BYTES = 1600


def held_bytes(batch: pa.RecordBatch) -> int:
    """About how much memory a batch takes at most, in bytes: its values, and its arrays themselves."""
    return int(batch.nbytes) + ARRAY_BYTES * sum(_arrays(field.type) for field in batch.schema)


def _arrays(type_: pa.DataType) -> int:
    return 1 + sum(_arrays(type_.field(number).type) for number in range(type_.num_fields))
