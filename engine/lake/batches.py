"""Record batches of a lake's rows put together.

An object of a short segment has a few rows, which take more memory as a batch than their values (``footprint``),
and milliseconds to handle. So small batches are put together. They may differ: documents gain fields, and members
at any depth. Nulls stand for what a batch lacks, which is also how a reader sees a file that lacks it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa

from engine.footprint import held_bytes, joined

_BATCH_ROWS = 4096
_BATCH_BYTES = 8 * 2**20
_METADATA_PREFIX = "_cdc_"


def combined(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Fewer batches of the same rows in the same order, each of up to a few thousand rows or some MiB.

    Batches of which a column has different types are not put together.
    """
    held: list[pa.RecordBatch] = []
    schema = pa.schema([])  # of all that is held together
    rows = size = 0
    for each in batches:
        batch = each.replace_schema_metadata(None)  # that of the file
        is_like_last = bool(held) and held[-1].schema.equals(batch.schema, check_metadata=True)
        if held and (rows + batch.num_rows > _BATCH_ROWS or not (is_like_last or _agree(schema, batch.schema))):
            yield from _one(held)
            held, rows, size = [], 0, 0
        if not held:
            schema = batch.schema
        elif not is_like_last:
            schema = pa.unify_schemas([schema, batch.schema], promote_options="permissive")
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
    return batches if len(batches) < 2 else joined(batches, "permissive")


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
