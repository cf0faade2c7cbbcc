"""Raw events that no decoder takes, as a ``.bson.zst`` that ``bsondump`` reads as far as it can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import zstandard


class DeadLetterFile:
    """The bytes of the events, one after the other, compressed.

    Args:
        file: where the bytes go; needs ``write``.
    """

    suffix = ".bson.zst"

    def __init__(self, file: Any) -> None:
        self._file = file
        self._compressor = zstandard.ZstdCompressor().compressobj()

    def write(self, batches: Sequence[pa.RecordBatch]) -> None:
        """Write batches of one binary column."""
        for batch in batches:
            for event in batch.column(0).to_pylist():
                if data := self._compressor.compress(event):
                    self._file.write(data)

    def close(self, metadata: Mapping[str, str]) -> None:
        """End the frame; this format has no place for metadata."""
        self._file.write(self._compressor.flush())
