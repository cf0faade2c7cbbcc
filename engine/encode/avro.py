"""Avro object container files, of which fastavro writes the container, and the blocks are assembled by column.

Each value is a union of null and its type: the branch, 0 or 1 (in zigzag encoding: 2), and the value itself.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import IO, Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from engine.decode.schema import NAME_KEY
from engine.encode.compression import File
from engine.encode.pieces import content, pieces, regrouped
from engine.errors import ConfigError

# The branches of a union, and what comes after the last block of an array.
_NULL, _VALUE, _END = b"\0", b"\2", b"\0"

Bytes = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


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
        self._schema = schema
        self._writer = Writer(
            cast("IO[bytes]", _Flushable(file)), avro_schema(schema), codec=codec, compression_level=level
        )

    def write(self, batches: Sequence[pa.RecordBatch]) -> None:
        """Write batches."""
        for batch in pieces(batches):
            have = dict(zip(batch.schema.names, batch.columns, strict=True))
            # Records are read by the order of their fields, so one that lacks a field would be read as another.
            assert all(have[field.name].type == field.type for field in self._schema if field.name in have)
            values = [_member(have[field.name]) if field.name in have else _NULL for field in self._schema]
            rows = pc.binary_join_element_wise(pa.repeat(b"", batch.num_rows), *values, b"")
            self._writer.write_block(_Block(batch.num_rows, io.BytesIO(content(rows).tobytes())))

    def close(self, _: Mapping[str, str]) -> None:
        """End the file; the format has metadata only at the start of it."""
        self._writer.flush()


class _Flushable(io.RawIOBase):
    """A file with the interface that fastavro expects."""

    def __init__(self, file: File) -> None:
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._file.write(bytes(data))


class _Block(NamedTuple):
    """Encoded rows, with the names that fastavro expects."""

    num_records: int
    bytes_: io.BytesIO


# --- the schema ------------------------------------------------------------------------------------------


def avro_schema(schema: pa.Schema) -> dict[str, Any]:
    """The Avro schema of these columns; every field may be null."""
    return {"type": "record", "name": "row", "fields": _fields(list(schema), "row")}


def _fields(fields: Sequence[pa.Field], path: str) -> list[dict[str, Any]]:
    taken: set[str] = set()
    found = []
    for field in fields:
        name = plain = _name(field.name)
        number = 1
        while name in taken:
            number += 1
            name = f"{plain}_{number}"
        taken.add(name)
        made: dict[str, Any] = {"name": name, "type": ["null", _type(field.type, f"{path}__{name}")]}
        original = (field.metadata or {}).get(NAME_KEY.encode(), field.name.encode()).decode()
        found.append(made if name == original else made | {"doc": original})
    return found


def _name(name: str) -> str:
    """A name of letters, digits and ``_``; any other character becomes ``_x`` and its code."""
    made = "".join(
        each if each.isascii() and (each.isalnum() or each == "_") else f"_x{ord(each):x}" for each in name
    )
    return made if made and not made[0].isdigit() else f"_{made}"


def _type(type_: pa.DataType, path: str) -> Any:
    if pa.types.is_struct(type_):
        return {"type": "record", "name": path, "fields": _fields(list(type_), path)}
    if pa.types.is_list(type_):
        return {"type": "array", "items": ["null", _type(type_.value_type, f"{path}__item")]}
    if pa.types.is_timestamp(type_):
        return {"type": "long", "logicalType": "timestamp-millis"}
    if pa.types.is_decimal(type_):
        return {"type": "bytes", "logicalType": "decimal", "precision": type_.precision, "scale": type_.scale}
    if pa.types.is_fixed_size_binary(type_):
        return {"type": "fixed", "name": path, "size": type_.byte_width}
    return _TYPES[type_]


_TYPES = {
    pa.float64(): "double",
    pa.int64(): "long",
    pa.int32(): "int",
    pa.bool_(): "boolean",
    pa.string(): "string",
    pa.binary(): "bytes",
}


# --- values ----------------------------------------------------------------------------------------------


def _member(array: pa.Array) -> pa.Array | bytes:
    """The values of a field of a record; one value if all are null."""
    return _NULL if array.null_count == len(array) else _values(array)


def _values(array: pa.Array) -> pa.Array:
    """Each value in Avro's encoding, with the branch of its union."""
    type_ = array.type
    if pa.types.is_struct(type_):
        branch = pc.if_else(array.is_valid(), _VALUE, None)
        members = [_member(array.field(number)) for number in range(type_.num_fields)]
        return pc.fill_null(pc.binary_join_element_wise(branch, *members, b""), _NULL)
    valid = np.asarray(array.is_valid())
    if pa.types.is_list(type_):
        counts = _numbers(pc.list_value_length(array))
        values, lengths = _longs(counts)
        starts = _unions(values, np.where(counts > 0, lengths, 0), valid)
        items = pc.binary_join(regrouped(array, _values(array.flatten())), b"")
        ends = pc.if_else(array.is_valid(), _END, None)
        return pc.binary_join_element_wise(starts, items, ends, b"", null_handling="skip")
    if pa.types.is_string(type_) or pa.types.is_binary(type_):
        starts = _unions(*_longs(_numbers(pc.binary_length(array))), valid)
        return pc.binary_join_element_wise(starts, array.cast(pa.binary()), b"", null_handling="skip")
    if pa.types.is_decimal(type_):
        return _unions(*_decimals(_fixed(array, 16)), valid)
    if pa.types.is_boolean(type_):
        return _unions(_numbers(array).astype(np.uint8)[:, None], 1, valid)
    if pa.types.is_integer(type_) or pa.types.is_timestamp(type_):
        return _unions(*_longs(_numbers(array)), valid)
    width = type_.bit_width // 8
    return _unions(_fixed(array, width), width, valid)


def _numbers(array: pa.Array) -> Numbers:
    numbers: Numbers = pc.fill_null(array.cast(pa.int64()), 0).to_numpy()
    return numbers


def _fixed(array: pa.Array, width: int) -> Bytes:
    """The bytes of values of a fixed width, as they lie in memory: little-endian."""
    data = np.frombuffer(array.buffers()[1], np.uint8, len(array) * width, array.offset * width)
    return data.reshape(-1, width)


def _unions(values: Bytes, lengths: Numbers | int, valid: Flags) -> pa.Array:
    """Each value with the branch of its union; of its row in the table it takes the first bytes, this many."""
    rows, width = values.shape
    table = np.empty((rows, 1 + width), np.uint8)
    table[:, 0] = np.where(valid, _VALUE[0], _NULL[0])
    table[:, 1:] = values
    taken = np.where(valid, lengths, 0) + 1
    data = table[np.arange(1 + width) < taken[:, None]]
    offsets = np.append(0, np.cumsum(taken)).astype(np.int32)
    return pa.BinaryArray.from_buffers(pa.binary(), rows, [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def _longs(numbers: Numbers) -> tuple[Bytes, Numbers]:
    """Integers in zigzag encoding: seven bits in a byte, the lowest first, and the highest bit if more follow."""
    rest = ((numbers << 1) ^ (numbers >> 63)).view(np.uint64)
    width = max(1, -(-int(rest.max(initial=0)).bit_length() // 7))
    values = np.empty((len(numbers), width), np.uint8)
    lengths = np.ones(len(numbers), np.int64)
    for at in range(width):
        more = rest > 0x7F
        values[:, at] = rest.astype(np.uint8) & 0x7F | more.astype(np.uint8) << 7
        lengths += more
        rest >>= np.uint64(7)
    return values, lengths


def _decimals(unscaled: Bytes) -> tuple[Bytes, Numbers]:
    """Big-endian integers after their length, without the leading bytes that only repeat the sign."""
    digits = unscaled[:, ::-1]
    sign = digits[:, :1] >> 7
    needed = digits != sign * 0xFF
    needed[:, :-1] |= digits[:, 1:] >> 7 != sign
    needed[:, -1] = True
    first = needed.argmax(axis=1)[:, None]
    lengths = 16 - first
    last = np.take_along_axis(digits, np.minimum(first + np.arange(16), 15), axis=1)
    return np.hstack([lengths.astype(np.uint8) << 1, last]), 1 + lengths[:, 0]
