"""Record batches to one Parquet file: zstd, dictionaries, statistics, page index, page checksums."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.config.tree import SinkConfig

# A larger dictionary is abandoned: with many distinct values it costs more than it saves (measured: a quarter of
# the time for documents with some such columns, and a tenth of the size).
_DICTIONARY_SIZE = 128 * 1024
# Pages are cut at this size, but only between batches of values. With the default of 1024 values, large documents
# made pages as large as a row group, of which the encoder holds three copies.
_PAGE_BYTES = 2**20
_MAX_BATCH_ROWS = 1024
# A small object of a stream of many collections consists of many batches of few rows, and combining them is
# cheaper than encoding them one by one.
_SMALL_TABLE = 4 * 2**20
# What readers of tables expect. Iceberg's for Spark cannot read the booleans of pages of version 2 in vectors, and
# takes all times for microseconds, as which both formats define them.
_OF_TABLES = {"data_page_version": "1.0", "coerce_timestamps": "us"}
_OF_OTHERS = {"data_page_version": "2.0"}
# Values that rarely recur: a dictionary of them takes time and makes the file larger.
_UNIQUE_COLUMNS = {
    "_cdc_token",
    "_cdc_timestamp",
    "_cdc_key",
    "_cdc_id",
    "_cdc_update",
    "_cdc_before",
    "_cdc_raw",
    "_id",
}
# For other columns the first rows decide: at most this many rows or bytes, and at least this many values. Up to
# this share of distinct values, a column has some thousands in all, and a dictionary still pays off.
_LOOK_ROWS, _LOOK_BYTES, _LOOK_VALUES = 500, 2**20, 32
_MAX_DISTINCT = 0.9
# The minimum and maximum of whole documents are of no use, and the encoder keeps several copies of both for each
# page and each row group: 120 MiB for documents of 16 MB.
_WITHOUT_STATISTICS = {"_cdc_update", "_cdc_before", "_cdc_raw"}
# The same goes for columns whose first values are this long, and for their dictionaries. (Parquet itself omits a
# minimum or maximum longer than 4 KiB. Without statistics there is also no null count, by which a reader could
# skip files in which nothing was rescued.)
_LARGE_VALUE = 2**16


class ParquetFile:
    """One Parquet file being written.

    Args:
        file: where the bytes go; needs ``write``.
        schema: all columns; those missing from a batch are null.
    """

    def __init__(self, file: Any, schema: pa.Schema, config: SinkConfig) -> None:
        self._file = _Counted(file)
        self._schema = schema
        self._config = config
        self._writer: pq.ParquetWriter | None = None

    def write(self, batches: Sequence[pa.RecordBatch]) -> None:
        """Write batches as one row group."""
        table = pa.concat_tables([self._completed(batch) for batch in batches])
        if table.nbytes < _SMALL_TABLE:
            table = table.combine_chunks()
        if self._writer is None:
            self._writer = self._open(table)
        self._writer.write_table(table, row_group_size=table.num_rows)

    def _open(self, first: pa.Table) -> pq.ParquetWriter:
        """Create the writer, tuned to these first rows."""
        levels = self._config.compression in ("zstd", "gzip")
        row_bytes = max(1, first.nbytes // max(1, first.num_rows))
        large = _large_columns(first)
        without = large | _WITHOUT_STATISTICS
        looked_at = max(1, min(_LOOK_ROWS, _LOOK_BYTES // row_bytes))
        return pq.ParquetWriter(
            self._file,
            self._schema,
            compression=self._config.compression,
            compression_level=self._config.compression_level if levels else None,
            use_dictionary=[path for path in _repeating(first.slice(0, looked_at)) if path not in large],
            dictionary_pagesize_limit=_DICTIONARY_SIZE,
            write_statistics=[path for path, _ in _leaves_of(self._schema.empty_table()) if path not in without],
            write_page_index=True,
            write_page_checksum=True,
            data_page_size=_PAGE_BYTES,
            write_batch_size=max(1, min(_MAX_BATCH_ROWS, _PAGE_BYTES // row_bytes)),
            **(_OF_TABLES if self._config.partition_by == "table" else _OF_OTHERS),
        )

    def _completed(self, batch: pa.RecordBatch) -> pa.Table:
        have = dict(zip(batch.schema.names, batch.columns, strict=True))
        columns = [
            have[field.name] if field.name in have else pa.nulls(batch.num_rows, field.type)
            for field in self._schema
        ]
        return pa.Table.from_arrays(columns, schema=self._schema)

    def close(self, metadata: Mapping[str, str]) -> None:
        """Write the footer, with this metadata."""
        writer = self._writer or self._open(self._schema.empty_table())
        writer.add_key_value_metadata(dict(metadata))
        writer.close()
        self._writer = None


class _Counted:
    """A write-only file with the interface that Arrow expects."""

    closed = False

    def __init__(self, file: Any) -> None:
        self._file = file
        self._position = 0

    def write(self, data: Any) -> int:
        size = self._file.write(bytes(data))
        self._position += size
        return int(size)

    def tell(self) -> int:
        return self._position

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False


def _repeating(table: pa.Table) -> Iterator[str]:
    """The paths of the leaf columns, as Parquet names them, whose values recur."""
    for path, leaf in _leaves_of(table):
        if path in _UNIQUE_COLUMNS:
            continue
        values = leaf.slice(0, _LOOK_ROWS)
        count = len(values) - values.null_count
        if count < _LOOK_VALUES or pc.count_distinct(values).as_py() <= count * _MAX_DISTINCT:
            yield path


def _large_columns(table: pa.Table) -> set[str]:
    """The paths of the leaf columns with very long values."""
    return {
        path
        for name, column in zip(table.column_names, table.columns, strict=True)
        for chunk in column.chunks
        for path, leaf in _leaves(name, chunk)
        if (pa.types.is_string(leaf.type) or pa.types.is_binary(leaf.type))
        and (pc.max(pc.binary_length(leaf)).as_py() or 0) > _LARGE_VALUE
    }


def _leaves_of(table: pa.Table) -> Iterator[tuple[str, pa.Array]]:
    """The leaf columns with their paths, as Parquet names them."""
    for name, column in zip(table.column_names, table.columns, strict=True):
        yield from _leaves(name, column.combine_chunks())


def _leaves(path: str, values: pa.Array) -> Iterator[tuple[str, pa.Array]]:
    if pa.types.is_struct(values.type):
        for field, child in zip(values.type, values.flatten(), strict=True):
            yield from _leaves(f"{path}.{field.name}", child)
    elif pa.types.is_list(values.type):
        yield from _leaves(f"{path}.list.element", values.flatten())
    else:
        yield path, values
