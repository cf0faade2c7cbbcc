"""Chooses a file's format by the ending of its key.

The key decides, not the configuration, because a replay must rewrite the keys of its intent, and the configuration
may name another format by then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import pyarrow as pa

from engine.config.tree import SinkConfig
from engine.core.schema import CollectionSchema
from engine.decode.schema import RAW_COLUMN, arrow_schema
from engine.encode.compression import ENDINGS, CompressedFile, Compression, File

DEAD_LETTER_SUFFIX = ".bson.zst"
_SUFFIXES = {"parquet": ".parquet", "json": ".jsonl", "csv": ".csv", "avro": ".avro", "bson": ".bson"}
_AVRO_CODECS: dict[str, str] = {"none": "null", "gzip": "deflate", "zstd": "zstandard"}


class Encoder(Protocol):
    """One file being written."""

    def write(self, batches: Sequence[pa.RecordBatch]) -> None:
        """Write batches; columns missing from a batch are null."""

    def close(self, metadata: Mapping[str, str]) -> None:
        """Finish the file, with this metadata if the format has a place for it."""


def suffix_of(config: SinkConfig) -> str:
    """The ending of keys under this configuration."""
    ending = (
        next(each for each, name in ENDINGS.items() if name == config.compression) if _is_wrapped(config) else ""
    )
    return _SUFFIXES[config.format] + ending


def _is_wrapped(config: SinkConfig) -> bool:
    return config.format not in ("parquet", "avro")


def open_file(key: str, file: File, schema: CollectionSchema, config: SinkConfig, *, raw: bool) -> Encoder:
    """The encoder for the object of this key.

    Args:
        raw: whether ``_cdc_raw`` is one of the columns.
    """
    columns = arrow_schema(schema, raw=raw)
    if key.endswith(_SUFFIXES["parquet"]):
        from engine.encode.parquet import ParquetFile

        return ParquetFile(file, columns, config)
    if key.endswith(_SUFFIXES["avro"]):
        from engine.encode.avro import AvroFile

        codec = _AVRO_CODECS.get(config.compression, "null")
        return AvroFile(file, columns, codec, min(config.compression_level, 9 if codec == "deflate" else 22))
    name, compression = _split(key)
    level = min(config.compression_level, 9) if compression == "gzip" else config.compression_level
    compressed = CompressedFile(file, compression, level)
    if name.endswith(_SUFFIXES["json"]):
        from engine.encode.json_lines import JsonFile

        return JsonFile(compressed, columns)
    if name.endswith(_SUFFIXES["csv"]):
        from engine.encode.csv import CsvFile

        return CsvFile(compressed, columns)
    assert name.endswith(_SUFFIXES["bson"]), key
    from engine.encode.bson import BsonFile

    return BsonFile(compressed, RAW_COLUMN)


def _split(key: str) -> tuple[str, Compression]:
    for ending, compression in ENDINGS.items():
        if ending and key.endswith(ending):
            return key.removesuffix(ending), compression
    return key, "none"
