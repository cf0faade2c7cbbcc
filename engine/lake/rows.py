"""The rows of one collection, from all of its objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pyarrow as pa

from engine.lake.batches import combined
from engine.lake.objects import LakeObject, Objects, UnreadableError

_BATCH_ROWS = 4096


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

    return combined(each_batch())
