"""The rows of one collection, from all of its objects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import pyarrow as pa

from engine.lake.objects import LakeObject, Objects, UnreadableError

_BATCH_ROWS = 4096
_BATCH_BYTES = 8 * 2**20


def rows_of(
    objects: Objects, database: str, collection: str, unreadable: Callable[[LakeObject, UnreadableError], None]
) -> Iterator[pa.RecordBatch]:
    """All rows of a collection, in any order, a few thousand at a time.

    Args:
        unreadable: called for an object that cannot be read, whose other rows are left out.

    Raises:
        ConfigError: it has objects that are not Parquet.
        HeadraceError: of the store.
    """

    def each_batch() -> Iterator[pa.RecordBatch]:
        for each in objects.parquet_of(database, collection, "Use --lake-only."):
            try:
                yield from objects.batches(each, _BATCH_ROWS)
            except UnreadableError as error:
                unreadable(each, error)

    return _combined(each_batch())


def _combined(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Fewer batches of the same rows: small ones of the same columns together, as each costs milliseconds."""
    held: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        is_other = bool(held) and not batch.schema.equals(held[0].schema, check_metadata=True)
        if is_other or rows + batch.num_rows > _BATCH_ROWS or size + batch.nbytes > _BATCH_BYTES:
            yield from _one(held)
            held, rows, size = [], 0, 0
        held.append(batch)
        rows += batch.num_rows
        size += batch.nbytes
    yield from _one(held)


def _one(batches: list[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    if len(batches) > 1:
        yield from pa.Table.from_batches(batches).combine_chunks().to_batches()
    else:
        yield from batches
