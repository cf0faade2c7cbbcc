"""Whole-file compression for formats without compression of their own."""

from __future__ import annotations

import zlib
from typing import Any, Literal, Protocol

import zstandard

Compression = Literal["none", "gzip", "zstd"]
ENDINGS: dict[str, Compression] = {"": "none", ".gz": "gzip", ".zst": "zstd"}
_GZIP_FORMAT = 31  # zlib's largest window, with gzip's header


class File(Protocol):
    """A destination for bytes."""

    def write(self, data: bytes) -> int:
        """Write some bytes."""


class CompressedFile:
    """Compresses what is written to it; ``close`` ends the stream, not the underlying file."""

    def __init__(self, file: File, compression: Compression, level: int) -> None:
        self._file = file
        self._compressor: Any = None
        if compression == "gzip":
            self._compressor = zlib.compressobj(level, wbits=_GZIP_FORMAT)
        elif compression == "zstd":
            self._compressor = zstandard.ZstdCompressor(level).compressobj()

    def write(self, data: bytes) -> int:
        """Write some bytes."""
        if self._compressor is None:
            return self._file.write(data)
        if compressed := self._compressor.compress(data):
            self._file.write(compressed)
        return len(data)

    def flush(self) -> None:
        """Do nothing: the compressor writes when it has enough bytes."""

    def close(self) -> None:
        """End the stream."""
        if self._compressor is not None:
            self._file.write(self._compressor.flush())
