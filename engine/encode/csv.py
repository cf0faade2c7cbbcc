"""CSV: a struct or a list is JSON in it, a time RFC 3339 and binary base64, as in JSON lines."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.csv

from engine.encode.compression import CompressedFile
from engine.encode.json_lines import base64, is_binary, json_texts, times
from engine.encode.pieces import pieces


class CsvFile:
    """Comma-separated values with a header line; strings are quoted, to tell an empty one from null."""

    def __init__(self, file: CompressedFile, schema: pa.Schema) -> None:
        self._file = file
        self._schema = schema
        self._flat = pa.schema([pa.field(field.name, _flat_type(field.type)) for field in schema])
        header = io.BytesIO()
        pyarrow.csv.write_csv(self._flat.empty_table(), header)
        file.write(header.getvalue())

    def write(self, batches: Sequence[pa.RecordBatch]) -> None:
        """Write batches."""
        options = pyarrow.csv.WriteOptions(include_header=False)
        for batch in pieces(batches):
            have = dict(zip(batch.schema.names, batch.columns, strict=True))
            columns = [
                _flat(have[field.name]) if field.name in have else pa.nulls(batch.num_rows, field.type)
                for field in self._flat
            ]
            text = io.BytesIO()
            pyarrow.csv.write_csv(pa.Table.from_arrays(columns, schema=self._flat), text, options)
            self._file.write(text.getvalue())

    def close(self, _: Mapping[str, str]) -> None:
        """End the file; the format has no place for metadata."""
        self._file.close()


def _flat_type(type_: pa.DataType) -> pa.DataType:
    as_text = pa.types.is_nested(type_) or pa.types.is_timestamp(type_) or is_binary(type_)
    return pa.string() if as_text else type_


def _flat(array: pa.Array) -> pa.Array:
    """A column in a type that CSV can express."""
    if pa.types.is_nested(array.type):
        return json_texts(array)
    if pa.types.is_timestamp(array.type):
        return times(array)
    return base64(array) if is_binary(array.type) else array
