"""The formats written row by row: JSON lines, CSV, Avro, BSON.

They have the columns of the Parquet files under the same names. A value that the format has no type for is text:
in JSON and CSV a time is RFC 3339 (for years after 9999 or before 1, its milliseconds as an integer) and binary is
base64, and in CSV a struct or a list is JSON.
"""

from __future__ import annotations

import io
import math
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any, cast

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from engine.decode.schema import NAME_KEY
from engine.encode.compression import CompressedFile, File
from engine.errors import ConfigError

_YEAR_1_MS, _YEAR_10000_MS = -62135596800000, 253402300800000
_ENCODER = msgspec.json.Encoder()
# Rows as Python objects take about ten times their size as columns, so only this many bytes are converted at a
# time.
_PIECE_BYTES = 2**18


def _pieces(batches: Sequence[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        rows = max(1, batch.num_rows * _PIECE_BYTES // max(1, batch.nbytes))
        yield from (batch.slice(at, rows) for at in range(0, batch.num_rows, rows))


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
        for batch in _pieces(batches):
            index = batch.schema.get_field_index(self._column) if batch.num_columns > 1 else 0
            self._file.write(b"".join(batch.column(index).to_pylist()))

    def close(self, _: Mapping[str, str]) -> None:
        """End the file; the format has no place for metadata."""
        self._file.close()


class JsonFile:
    """One JSON object per row; null columns are left out."""

    def __init__(self, file: CompressedFile, schema: pa.Schema) -> None:
        self._file = file
        self._order = [field.name for field in schema]

    def write(self, batches: Sequence[pa.RecordBatch]) -> None:
        """Write batches."""
        for batch in _pieces(batches):
            names = [name for name in self._order if name in batch.schema.names]
            columns = [json_values(batch.column(name)) for name in names]
            rows = [
                {name: value for name, value in zip(names, row, strict=True) if value is not None}
                for row in zip(*columns, strict=True)
            ]
            self._file.write(_ENCODER.encode_lines(rows))

    def close(self, _: Mapping[str, str]) -> None:
        """End the file; the format has no place for metadata."""
        self._file.close()


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
        for batch in _pieces(batches):
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


class AvroFile:
    """An Avro object container file; a field that had to be renamed has its original name in ``doc``.

    Args:
        codec: ``null``, ``deflate`` or ``zstandard``.

    Raises:
        ConfigError: what writes Avro is not installed.
    """

    def __init__(self, file: File, schema: pa.Schema, codec: str, level: int) -> None:
        try:
            from fastavro.write import Writer
        except ImportError as error:
            raise ConfigError("write Avro", str(error), "pip install 'headrace[avro]'") from error
        root = avro_schema(schema)
        self._names = [field["name"] for field in root["fields"]]
        self._schema = schema
        self._writer = Writer(cast("IO[bytes]", _Flushable(file)), root, codec=codec, compression_level=level)

    def write(self, batches: Sequence[pa.RecordBatch]) -> None:
        """Write batches."""
        for batch in _pieces(batches):
            have = dict(zip(batch.schema.names, batch.columns, strict=True))
            columns = [
                _avro_values(have[field.name]) if field.name in have else [None] * batch.num_rows
                for field in self._schema
            ]
            for row in zip(*columns, strict=True):
                self._writer.write(dict(zip(self._names, row, strict=True)))

    def close(self, _: Mapping[str, str]) -> None:
        """Write the last block; the format has metadata only at the start of the file."""
        self._writer.flush()


class _Flushable(io.RawIOBase):
    """A file with the interface that fastavro expects."""

    def __init__(self, file: File) -> None:
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._file.write(bytes(data))


# --- values ----------------------------------------------------------------------------------------------


Leaf = Callable[[pa.Array], list[Any]]
Names = Callable[[pa.DataType], list[str]]


def values_of(array: pa.Array, leaf: Leaf, names: Names) -> list[Any]:
    """A column's values as Python objects: structs as dicts, lists as lists, everything else by ``leaf``.

    Args:
        names: gives the field names of a struct.
    """
    if pa.types.is_struct(array.type):
        labels = names(array.type)
        columns = [values_of(child, leaf, names) for child in array.flatten()]
        rows = zip(*columns, strict=True) if columns else [()] * len(array)
        found: list[Any] = [dict(zip(labels, row, strict=True)) for row in rows]
    elif pa.types.is_list(array.type):
        items = values_of(array.flatten(), leaf, names)
        ends = np.cumsum(pc.fill_null(pc.list_value_length(array), 0).to_numpy()).tolist()
        found = [items[at:end] for at, end in zip([0, *ends[:-1]], ends, strict=True)]
    else:
        return leaf(array)
    return [value if there else None for there, value in zip(array.is_valid().to_pylist(), found, strict=True)]


def json_values(array: pa.Array) -> list[Any]:
    """A column's values as objects that msgspec writes to JSON without loss."""
    return values_of(array, _json_leaf, lambda type_: [field.name for field in type_])


def _json_leaf(array: pa.Array) -> list[Any]:
    if pa.types.is_timestamp(array.type):
        return _times(array)
    values: list[Any] = array.to_pylist()
    if pa.types.is_floating(array.type) and pc.all(pc.is_finite(array), skip_nulls=True).as_py() is False:
        return [value if value is None or math.isfinite(value) else _not_finite(value) for value in values]
    if pa.types.is_decimal(array.type):
        return [None if value is None else str(value) for value in values]
    return values


def _times(array: pa.Array) -> list[str | int | None]:
    stamps = array.cast(pa.int64())
    found: list[str | int | None] = stamps.to_pylist()
    numbers = pc.fill_null(stamps, 0).to_numpy()
    shown = (numbers >= _YEAR_1_MS) & (numbers < _YEAR_10000_MS) & ~np.asarray(array.is_null())
    texts = np.datetime_as_string(numbers[shown].astype("datetime64[ms]")).tolist()
    for row, text in zip(np.flatnonzero(shown).tolist(), texts, strict=True):
        found[row] = f"{text}Z"
    return found


def _not_finite(value: float) -> dict[str, str]:
    return {"$numberDouble": "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}


def _flat_type(type_: pa.DataType) -> pa.DataType:
    as_text = pa.types.is_nested(type_) or pa.types.is_timestamp(type_) or _is_binary(type_)
    return pa.string() if as_text else type_


def _flat(array: pa.Array) -> pa.Array:
    """A column in a type that CSV can express."""
    texts: Callable[[Any], str]
    if pa.types.is_nested(array.type):
        texts = _json_text
    elif pa.types.is_timestamp(array.type):
        texts = str
    elif _is_binary(array.type):
        texts = _base64
    else:
        return array
    values = array.to_pylist() if _is_binary(array.type) else json_values(array)
    return pa.array([None if value is None else texts(value) for value in values], pa.string())


def _json_text(value: Any) -> str:
    return _ENCODER.encode(value).decode()


def _base64(value: bytes) -> str:
    return b64encode(value).decode()


def _is_binary(type_: pa.DataType) -> bool:
    return bool(pa.types.is_binary(type_) or pa.types.is_fixed_size_binary(type_))


# --- Avro ------------------------------------------------------------------------------------------------


def avro_schema(schema: pa.Schema) -> dict[str, Any]:
    """The Avro schema of these columns; every field may be null."""
    return {"type": "record", "name": "row", "fields": _avro_fields(list(schema), "row")}


def _avro_fields(fields: Sequence[pa.Field], path: str) -> list[dict[str, Any]]:
    taken: set[str] = set()
    found = []
    for field in fields:
        name = plain = _avro_name(field.name)
        number = 1
        while name in taken:
            number += 1
            name = f"{plain}_{number}"
        taken.add(name)
        made: dict[str, Any] = {"name": name, "type": ["null", _avro_type(field.type, f"{path}__{name}")]}
        original = (field.metadata or {}).get(NAME_KEY.encode(), field.name.encode()).decode()
        found.append(made if name == original else made | {"doc": original})
    return found


def _avro_name(name: str) -> str:
    """A name of letters, digits and ``_``; any other character becomes ``_x`` and its code."""
    made = "".join(
        each if each.isascii() and (each.isalnum() or each == "_") else f"_x{ord(each):x}" for each in name
    )
    return made if made and not made[0].isdigit() else f"_{made}"


def _avro_type(type_: pa.DataType, path: str) -> Any:
    if pa.types.is_struct(type_):
        return {"type": "record", "name": path, "fields": _avro_fields(list(type_), path)}
    if pa.types.is_list(type_):
        return {"type": "array", "items": ["null", _avro_type(type_.value_type, f"{path}__item")]}
    if pa.types.is_timestamp(type_):
        return {"type": "long", "logicalType": "timestamp-millis"}
    if pa.types.is_decimal(type_):
        return {"type": "bytes", "logicalType": "decimal", "precision": type_.precision, "scale": type_.scale}
    if pa.types.is_fixed_size_binary(type_):
        return {"type": "fixed", "name": path, "size": type_.byte_width}
    return _AVRO_TYPES[type_]


_AVRO_TYPES = {
    pa.float64(): "double",
    pa.int64(): "long",
    pa.int32(): "int",
    pa.bool_(): "boolean",
    pa.string(): "string",
    pa.binary(): "bytes",
}


def _avro_values(array: pa.Array) -> list[Any]:
    return values_of(array, _avro_leaf, lambda type_: [field["name"] for field in _avro_fields(list(type_), "")])


def _avro_leaf(array: pa.Array) -> list[Any]:
    values: list[Any] = (array.cast(pa.int64()) if pa.types.is_timestamp(array.type) else array).to_pylist()
    return values
