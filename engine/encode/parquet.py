"""Record batches to one Parquet file: zstd, dictionaries, statistics, page index, page checksums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from engine.config.tree import SinkConfig

# Past this a dictionary is given up: of many different values it costs more than it saves (measured: a quarter
# of the time for documents that have some such columns, and a tenth of the size).
_DICTIONARY_SIZE = 128 * 1024
# Pages are cut at so many bytes, but only between batches of values: by default of 1024, which for large documents
# made pages of a whole row group, of which the encoder holds three copies.
_PAGE_BYTES = 2**20
_MOST_BATCH_ROWS = 1024
# A small object of a stream of many collections is made of many batches of few rows: putting them together takes
# less than encoding them one by one.
_SMALL_TABLE = 4 * 2**20
# Values that hardly ever come twice: a dictionary of them is only built to be thrown away.
_UNIQUE_COLUMNS = {"_cdc_token", "_cdc_key", "_cdc_update", "_cdc_before", "_cdc_raw", "_id"}


class ParquetFile:
    """One Parquet file being written.

    Args:
        file: where the bytes go; needs ``write``.
        schema: all columns; a batch may lack some, which are then null.
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
            self._writer = self._open(table.nbytes // max(1, table.num_rows))
        self._writer.write_table(table, row_group_size=table.num_rows)

    def _open(self, row_bytes: int) -> pq.ParquetWriter:
        """The writer, for rows of about this size."""
        levels = self._config.compression in ("zstd", "gzip")
        return pq.ParquetWriter(
            self._file,
            self._schema,
            compression=self._config.compression,
            compression_level=self._config.compression_level if levels else None,
            use_dictionary=[name for name in _leaves(self._schema) if name not in _UNIQUE_COLUMNS],
            dictionary_pagesize_limit=_DICTIONARY_SIZE,
            write_statistics=True,
            write_page_index=True,
            write_page_checksum=True,
            data_page_version="2.0",
            data_page_size=_PAGE_BYTES,
            write_batch_size=max(1, min(_MOST_BATCH_ROWS, _PAGE_BYTES // max(1, row_bytes))),
        )

    def _completed(self, batch: pa.RecordBatch) -> pa.Table:
        have = dict(zip(batch.schema.names, batch.columns, strict=True))
        columns = [
            have[field.name] if field.name in have else pa.nulls(batch.num_rows, field.type)
            for field in self._schema
        ]
        return pa.Table.from_arrays(columns, schema=self._schema)

    def close(self, metadata: Mapping[str, str]) -> None:
        """Write the footer, with these facts in it."""
        writer = self._writer or self._open(0)
        writer.add_key_value_metadata(dict(metadata))
        writer.close()


class _Counted:
    """A write-only file as Arrow wants one."""

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


def _leaves(schema: pa.Schema) -> list[str]:
    """The paths of all leaf columns, as Parquet names them."""
    found: list[str] = []

    def walk(field: pa.Field, path: str) -> None:
        if pa.types.is_struct(field.type):
            for child in field.type:
                walk(child, f"{path}.{child.name}")
        elif pa.types.is_list(field.type):
            walk(field.type.value_field.with_name("element"), f"{path}.list.element")
        else:
            found.append(path)

    for field in schema:
        walk(field, field.name)
    return found
