"""The files of tables: their rows, and how the engine writes those that are not the lake's."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.config.tree import SinkConfig
from engine.encode.parquet import ParquetFile
from engine.errors import ConfigError, TransientError
from engine.lake.objects import Objects, Stored, UnreadableError
from engine.sink.objects import Sink, Upload
from engine.tables.table import Bounds, DataFile

DIRECTORY = "data/"
_BATCH_ROWS = 8192


def batches_of(
    objects: Objects,
    file: Stored,
    operation: str,
    columns: Callable[[pq.RowGroupMetaData, list[str]], list[str]] | None = None,
) -> Iterator[pa.RecordBatch]:
    """The rows of a file, some thousand at once.

    Args:
        operation: for the error.
        columns: see ``Objects.batches``.

    Raises:
        ConfigError: it is gone or damaged.
        HeadraceError: of the store.
    """
    with _legible(file, operation):
        yield from objects.batches(file, _BATCH_ROWS, columns=columns)


def columns_of(objects: Objects, file: Stored, operation: str) -> pa.Schema:
    """The columns of the rows of a file.

    Raises: see ``batches_of``.
    """
    with _legible(file, operation):
        return objects.schema(file).remove_metadata()


@contextmanager
def _legible(file: Stored, operation: str) -> Iterator[None]:
    try:
        yield
    except (UnreadableError, KeyError, ConfigError) as error:
        if isinstance(error, ConfigError) and not isinstance(error.__cause__, FileNotFoundError):
            raise
        cause = error.cause if isinstance(error, ConfigError) else str(error)
        remedy = "Bring the file back, or drop the table that names it: it is made again from the lake."
        raise ConfigError(operation, f"{file.key} cannot be read: {cause}", remedy) from error


@contextmanager
def waiting_on_disk(operation: str) -> Iterator[None]:
    """Where rows that do not fit into memory are put on disk.

    Raises:
        TransientError: there is no room, or no such directory.
    """
    try:
        yield
    except OSError as error:  # those of stores and libraries have become ours
        remedy = (
            "Make room in the system's temporary directory (TMPDIR), where rows wait that do not fit into memory."
        )
        raise TransientError(operation, str(error), remedy) from error


class NewFile:
    """A file being written, with a name of its own; a context manager, which leaves nothing behind on an error.

    Args:
        directory: of the table: ``<database>/<name>/``.
        schema: of all rows.
        day: the partition that they are in, if the table has partitions. Polars expects it in the key, too.
    """

    def __init__(
        self, sink: Sink, config: SinkConfig, directory: str, schema: pa.Schema, day: datetime.date | None = None
    ) -> None:
        self._day = day
        partition = f"cdc_date={day.isoformat()}/" if day is not None else ""
        self._key = f"{directory}{DIRECTORY}{partition}{uuid.uuid4().hex}.parquet"
        self._schema = schema
        self._upload = _Counted(sink.open(self._key))
        self._file = ParquetFile(self._upload, schema, config)
        self._rows = 0
        self._oldest, self._newest = 2**63 - 1, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._upload.upload.discard()

    @property
    def size(self) -> int:
        """What is written, in bytes."""
        return self._upload.size

    def write(self, rows: Sequence[pa.RecordBatch]) -> None:
        """Write rows as one row group."""
        for each in rows:
            self._rows += each.num_rows
            times = pc.min_max(each.column("_cdc_timestamp"))
            self._oldest = min(self._oldest, times["min"].as_py())
            self._newest = max(self._newest, times["max"].as_py())
        self._file.write(rows)

    def publish(self, first: str | None = None, last: str | None = None) -> DataFile:
        """Make it visible.

        Args:
            first, last: bounds of ``_cdc_id``.
        """
        self._file.close({})
        self._upload.upload.seal()
        self._upload.upload.publish()
        return DataFile(
            stream="",
            seq=0,
            key=self._key,
            size=self.size,
            rows=self._rows,
            day=self._day,
            schema=self._schema.remove_metadata(),
            version=0,
            bounds=Bounds(self._oldest, self._newest, first, last),
        )


class _Counted:
    """An upload that counts what is written."""

    def __init__(self, upload: Upload) -> None:
        self.upload = upload
        self.size = 0

    def write(self, data: Any) -> int:
        self.size += len(data)
        return self.upload.write(data)
