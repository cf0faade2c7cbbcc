"""The rows of one collection, for the fold: all columns up to a time, and only the fold's own of later rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.errors import FatalError
from engine.lake.batches import combined
from engine.lake.objects import Objects, UnreadableError

_NAMESPACE = ("_cdc_database", "_cdc_collection")
# The fold needs no more of a row that does not count.
_OF_LATER = {"_cdc_op", "_cdc_token", "_cdc_cluster_time", "_cdc_timestamp", "_cdc_key", "_cdc_id", *_NAMESPACE}
_BATCH_ROWS = 8192


def rows_until(objects: Objects, database: str, collection: str, at: int) -> Iterator[pa.RecordBatch]:
    """The rows of a collection, in any order.

    Raises:
        ConfigError: it has objects that are not Parquet.
        FatalError: an object is damaged.
        HeadraceError: of the store.
    """

    def columns(group: pq.RowGroupMetaData, names: list[str]) -> list[str]:
        return [name for name in names if name in _OF_LATER] if _is_later(group, at) else names

    def each_batch() -> Iterator[pa.RecordBatch]:
        for each in objects.parquet_of(database, collection, 'Restore from a lake of sink.format = "parquet".'):
            try:
                for batch in objects.batches(each, _BATCH_ROWS, checked=True, columns=columns):
                    yield _of_collection(batch, (database, collection))
            except (UnreadableError, KeyError) as error:
                cause = str(error) if isinstance(error, UnreadableError) else f"it has no column {error}"
                remedy = (
                    "The object is damaged: bring back an earlier version of it. The command verify finds others."
                )
                raise FatalError(f"read {each.key}", cause, remedy) from error

    return combined(each_batch())


def _is_later(group: Any, at: int) -> bool:
    """Whether all rows of a row group are certainly after a cluster time."""
    for number in range(group.num_columns):
        column = group.column(number)
        if column.path_in_schema == "_cdc_timestamp":
            told = column.statistics
            return bool(told is not None and told.has_min_max and told.null_count == 0 and told.min > at)
    return False


def _of_collection(rows: pa.RecordBatch, namespace: tuple[str, str]) -> pa.RecordBatch:
    """The rows of the collection: where there are no directories, others may be with them."""
    own = [pc.equal(rows.column(name), value) for name, value in zip(_NAMESPACE, namespace, strict=True)]
    mine = pc.fill_null(pc.and_(*own), False)
    return rows if mine.false_count == 0 else rows.filter(mine)
