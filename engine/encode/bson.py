"""The bytes of the events or documents themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from engine.encode.compression import CompressedFile
from engine.encode.pieces import pieces


class BsonFile:
    """The concatenated bytes of the events or documents, as ``bsondump`` and ``mongorestore`` read them.

    Args:
        column: the column with these bytes; in a batch with a single column it is that one.
    """

    def __init__(self, file: CompressedFile, column: str) -> None:
        self._file = file
        self._column = column

    def write(self, batches: Sequence[pa.RecordBatch]) -> None:
        """Write batches."""
        for batch in pieces(batches):
            index = batch.schema.get_field_index(self._column) if batch.num_columns > 1 else 0
            self._file.write(b"".join(batch.column(index).to_pylist()))

    def close(self, _: Mapping[str, str]) -> None:
        """End the file; the format has no place for metadata."""
        self._file.close()
