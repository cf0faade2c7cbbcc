"""The rows of one collection, for the fold: all columns up to a time, and only the fold's own of later rows."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.errors import ConfigError, FatalError
from engine.lake.objects import LakeObject, Objects

# The fold needs no more of a row that does not count.
_KEYS = ("_cdc_op", "_cdc_token", "_cdc_cluster_time", "_cdc_timestamp", "_cdc_key", "_cdc_id")
_NAMESPACE = ("_cdc_database", "_cdc_collection")
# An object up to this size is read by one request; of a larger one, the columns of a row group.
_WHOLE_BYTES = 16 * 2**20
# Rows that are decoded at once, approximately.
_BATCH_BYTES, _BATCH_ROWS = 8 * 2**20, 8192


def rows_until(objects: Objects, database: str, collection: str, at: int) -> Iterator[pa.RecordBatch]:
    """The rows of a collection, in any order.

    Raises:
        ConfigError: it has objects that are not Parquet.
        FatalError: an object is damaged.
        HeadraceError: of the store.
    """
    for each in objects.of_collection(database, collection):
        if not each.has_footer:
            cause = f"{each.key} is not Parquet, and only that can be read back"
            raise ConfigError(
                f"read {database}.{collection}", cause, 'Restore from a lake of sink.format = "parquet".'
            )
        try:
            yield from _rows(objects, each, (database, collection), at)
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            cause = f"{type(error).__name__}: {error}"
            remedy = "The object is damaged: bring back an earlier version of it. The command verify finds others."
            raise FatalError(f"read {each.key}", cause, remedy) from error


def _rows(objects: Objects, object_: LakeObject, namespace: tuple[str, str], at: int) -> Iterator[pa.RecordBatch]:
    file: Any = objects.open(object_)
    if object_.size <= _WHOLE_BYTES:
        file = io.BytesIO(file.read())
    with pq.ParquetFile(file, pre_buffer=True, page_checksum_verification=True) as parquet:
        for number in range(parquet.num_row_groups):
            group = parquet.metadata.row_group(number)
            names = list(parquet.schema_arrow.names)
            if _is_later(group, at):
                names = [name for name in (*_KEYS, *_NAMESPACE) if name in names]
            row_bytes = max(1, group.total_byte_size // max(1, group.num_rows))
            size = max(1, min(_BATCH_ROWS, _BATCH_BYTES // row_bytes))
            # Row groups one after the other: what is requested at once is held in memory.
            for batch in parquet.iter_batches(size, row_groups=[number], columns=names, use_threads=False):
                yield _of_collection(batch, namespace)


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
