"""Record batches of a lake's rows: what they take in memory, and fewer of them for the same rows.

An object of a short segment has a few rows, but each of its columns is an array with buffers, which takes more
memory than a few values, and milliseconds to handle. So small batches are put together. They may differ: documents
gain fields, and members at any depth. Nulls stand for what a batch lacks, which is also how a reader sees a file
that lacks it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa

_BATCH_ROWS = 4096
_BATCH_BYTES = 8 * 2**20
# What an array of a row or two takes besides its values: measured with the system's allocator, which aligns.
_ARRAY_BYTES = 1600
_METADATA_PREFIX = "_cdc_"


def held_bytes(batch: pa.RecordBatch) -> int:
    """About how much memory a batch takes: its values, and its arrays themselves."""
    return int(batch.nbytes) + _ARRAY_BYTES * sum(_arrays(field.type) for field in batch.schema)


def _arrays(type_: pa.DataType) -> int:
    return 1 + sum(_arrays(type_.field(number).type) for number in range(type_.num_fields))


def combined(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Fewer batches of the same rows in the same order, each of up to a few thousand rows or some MiB.

    Batches of which a column has different types are not put together.
    """
    held: list[pa.RecordBatch] = []
    rows = size = 0
    for each in batches:
        batch = each.replace_schema_metadata(None)  # that of the file
        if held and (rows + batch.num_rows > _BATCH_ROWS or not _agree(held[-1].schema, batch.schema)):
            yield from _one(held)
            held, rows, size = [], 0, 0
        held.append(batch)
        rows += batch.num_rows
        size += held_bytes(batch)
        if size > _BATCH_BYTES:
            held = _one(held)
            size = sum(map(held_bytes, held))
            if size > _BATCH_BYTES // 2:
                yield from held
                held, rows, size = [], 0, 0
    yield from _one(held)


def _one(batches: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    if len(batches) < 2:
        return batches
    tables = [pa.Table.from_batches([batch]) for batch in batches]
    whole: Sequence[pa.RecordBatch] = (
        pa.concat_tables(tables, promote_options="permissive").combine_chunks().to_batches()
    )
    return list(whole)


def _agree(one: pa.Schema, other: pa.Schema) -> bool:
    """Whether rows of both can be in one batch, and say the same there."""
    if one.equals(other, check_metadata=True):
        return True
    ours, theirs = ({field.name: field for field in schema} for schema in (one, other))
    shared = ours.keys() & theirs.keys()
    return not any(name.startswith(_METADATA_PREFIX) for name in ours.keys() ^ theirs.keys()) and all(
        _same(ours[name], theirs[name]) for name in shared
    )


def _same(one: pa.Field, other: pa.Field) -> bool:
    if one.equals(other, check_metadata=True):
        return True
    if one.metadata != other.metadata:
        return False
    if pa.types.is_struct(one.type) and pa.types.is_struct(other.type):
        theirs = {field.name: field for field in other.type}
        return all(_same(field, theirs[field.name]) for field in one.type if field.name in theirs)
    if pa.types.is_list(one.type) and pa.types.is_list(other.type):
        return _same(one.type.value_field, other.type.value_field)
    return False
