"""One field's values, for all rows at once, as an Arrow array of the field's settled type.

``build`` takes the parts that the cursors found (one per BSON type) and puts each value in its row. A value that
the column cannot hold exactly is *refused*: its row stays null, and the caller is told where the value is. Which
values a column can hold:

| column | holds |
|---|---|
| float64 | double; int32, and int64 if the double equals it |
| int64, int32 | int32, int64, double: if the integer equals it (and it is not a negative zero) |
| bool | bool, if its byte is 0 or 1 |
| string | string that is valid UTF-8 |
| timestamp | date, within the range of microseconds in an int64 |
| ObjectId | ObjectId |
| decimal (a string) | Decimal128, except a NaN with a payload |
| decimal128(P, S) | Decimal128, int32, int64, double: if the decimal equals it |
| binary | binary of the column's subtype |
| uuid | binary of subtype 4 with 16 bytes |

``engine.decode.rowwise`` has the same rules for single values; property tests check that the two agree.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable
from decimal import Context, Decimal
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from engine.core.schema import DataType
from engine.decode.cursor import Bools, Ints, Part, View
from engine.decode.json import decimal_text, utf8
from engine.decode.schema import MAX_MS, MILLISECONDS
from engine.rawbson import elements as raw
from engine.rawbson import native

Parts = dict[int, Part]
# (BSON type, values that the column cannot hold)
Refused = list[tuple[int, Part]]

# The bias of a Decimal128's stored exponent.
_BIAS = 6176


def build(view: View, type_: DataType, parts: Parts, count: int) -> tuple[pa.Array, Refused]:
    """The array of a scalar field (not a struct, list or JSON), and the values that it cannot hold."""
    result: tuple[pa.Array, Refused] = _BUILDERS[type_.kind](view, type_, parts, count)
    return result


def _numbers(accepts: dict[int, Callable[[npt.NDArray[Any]], Bools | None]], arrow: pa.DataType) -> Any:
    """A builder for a numeric column.

    Args:
        accepts: for each BSON type, which of its values the column can hold (None: all).
    """
    # Not to_pandas_dtype(), for which many versions of pyarrow want pandas.
    dtype = np.dtype(f"{'f' if pa.types.is_floating(arrow) else 'i'}{arrow.bit_width // 8}")

    def builder(_: View, __: DataType, parts: Parts, count: int) -> tuple[pa.Array, Refused]:
        fitting: list[Part] = []
        refused: Refused = []
        for kind, whole in parts.items():
            part = whole
            if kind not in accepts:
                refused.append((kind, part))
                continue
            assert part.payload is not None
            fits = accepts[kind](part.payload)
            if fits is not None and not fits.all():
                refused.append((kind, part.select(~fits, count)))
                part = part.select(fits, count)
            fitting.append(part)
        if len(fitting) == 1:
            (part,) = fitting
            assert part.payload is not None
            return placed(part.payload.astype(dtype, copy=False), part.rows, count, arrow), refused
        values = np.zeros(count, dtype)
        present = np.zeros(count, bool)
        for part in fitting:
            values[part.rows] = part.payload
            present[part.rows] = True
        return primitive(values, present, arrow), refused

    return builder


def _exact_as_double(values: npt.NDArray[Any]) -> Bools | None:
    doubles = values.astype(np.float64)
    # 2**63 as a double is not an int64: casting it back would overflow.
    exact: Bools = (doubles < 2.0**63) & (np.where(doubles < 2.0**63, doubles, 0).astype(np.int64) == values)
    return exact


def _whole(low: float, high: float) -> Callable[[npt.NDArray[Any]], Bools]:
    """Whether doubles are integers from ``low`` to below ``high``, and not a negative zero."""

    def fits(values: npt.NDArray[Any]) -> Bools:
        inside = (values >= low) & (values < high)
        whole = np.where(inside, values, 0.5)
        result: Bools = (np.floor(whole) == whole) & ~((values == 0) & np.signbit(values))
        return result

    return fits


def _fits_int32(values: npt.NDArray[Any]) -> Bools:
    result: Bools = (values >= -(2**31)) & (values < 2**31)
    return result


def fitting_dates(values: npt.NDArray[Any]) -> Bools | None:
    """Which dates, in milliseconds, common readers can represent; None for all of them."""
    if not len(values) or (values.min() >= -MAX_MS and values.max() <= MAX_MS):
        return None
    result: Bools = (values >= -MAX_MS) & (values <= MAX_MS)
    return result


def _booleans(_: View, __: DataType, parts: Parts, count: int) -> tuple[pa.Array, Refused]:
    part = parts.get(raw.BOOL)
    refused = _others(parts, raw.BOOL)
    if part is None:
        return pa.nulls(count, pa.bool_()), refused
    assert part.payload is not None
    if len(part) and part.payload.max() > 1:
        part = _without(part, part.payload > 1, raw.BOOL, refused, count)
    assert part.payload is not None
    return placed(part.payload, part.rows, count, pa.bool_()), refused


def _strings(view: View, __: DataType, parts: Parts, count: int) -> tuple[pa.Array, Refused]:
    part = parts.get(raw.STRING)
    refused = _others(parts, raw.STRING)
    if part is None:
        return pa.nulls(count, pa.string()), refused
    array = strings(view, part, count)
    if (wrong := not_utf8(array)) is not None:
        part = _without(part, wrong if part.rows is None else wrong[part.rows], raw.STRING, refused, count)
        array = strings(view, part, count)
    return array, refused


def _binaries(view: View, type_: DataType, parts: Parts, count: int) -> tuple[pa.Array, Refused]:
    part, refused = _of_subtype(view, type_.subtype, parts, count)
    if part is None:
        return pa.nulls(count, pa.binary()), refused
    begin = part.at + 5
    if type_.subtype == raw.OLD_BINARY:  # contains its length twice
        short = part.stop - part.at < 9
        wrong = short | (view.int32[np.where(short, part.at, begin)] != part.stop - part.at - 9)
        part = _without(part, wrong, raw.BINARY, refused, count)
        begin = part.at + 9
    return texts(view, begin, part.stop, part.rows, count, pa.binary()), refused


def _uuids(view: View, __: DataType, parts: Parts, count: int) -> tuple[pa.Array, Refused]:
    part, refused = _of_subtype(view, raw.UUID, parts, count)
    if part is None:
        return pa.nulls(count, pa.string()), refused
    part = _without(part, part.stop - part.at != 5 + 16, raw.BINARY, refused, count)
    digits = hex_digits(view.of_type[raw.DECIMAL128][part.at + 5], 16)
    dashed = np.full((len(part), 36), ord("-"), np.uint8)
    for begin, end in ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32)):
        shift = {0: 0, 8: 1, 12: 2, 16: 3, 20: 4}[begin]
        dashed[:, begin + shift : end + shift] = digits[:, begin:end]
    return fixed_texts(dashed, part.rows, count), refused


def _object_ids(_: View, __: DataType, parts: Parts, count: int) -> tuple[pa.Array, Refused]:
    part = parts.get(raw.OBJECT_ID)
    refused = _others(parts, raw.OBJECT_ID)
    if part is None:
        return pa.nulls(count, pa.string()), refused
    assert part.payload is not None
    return fixed_texts(hex_digits(part.payload, 12), part.rows, count), refused


def _binary_object_ids(_: View, __: DataType, parts: Parts, count: int) -> tuple[pa.Array, Refused]:
    arrow = pa.binary(12)
    part = parts.get(raw.OBJECT_ID)
    refused = _others(parts, raw.OBJECT_ID)
    if part is None:
        return pa.nulls(count, arrow), refused
    assert part.payload is not None
    return placed(part.payload, part.rows, count, arrow), refused


def _decimals(_: View, __: DataType, parts: Parts, count: int) -> tuple[pa.Array, Refused]:
    part = parts.get(raw.DECIMAL128)
    refused = _others(parts, raw.DECIMAL128)
    if part is None:
        return pa.nulls(count, pa.string()), refused
    assert part.payload is not None
    array = decimal_texts(part.payload)
    if array.null_count:
        wrong = np.asarray(array.is_null())
        array = array.drop_null()
        part = _without(part, wrong, raw.DECIMAL128, refused, count)
    return scattered(array, part.rows, count), refused


def _fixed_decimals(_: View, type_: DataType, parts: Parts, count: int) -> tuple[pa.Array, Refused]:
    """Value by value, so slower: only used for overrides."""
    accepted = (raw.DECIMAL128, raw.INT32, raw.INT64, raw.DOUBLE)
    refused = _others(parts, *accepted)
    values: list[Decimal | None] = [None] * count
    for kind in accepted:
        if (part := parts.get(kind)) is None:
            continue
        assert part.payload is not None
        given = [bytes(each) for each in part.payload] if kind == raw.DECIMAL128 else part.payload.tolist()
        found = [
            decimal_of(each if isinstance(each, bytes) else Decimal(each), type_.precision, type_.scale)
            for each in given
        ]
        for row, value in zip(range(count) if part.rows is None else part.rows.tolist(), found, strict=True):
            values[row] = value
        _without(part, np.array([value is None for value in found], bool), kind, refused, count)
    return pa.array(values, pa.decimal128(type_.precision, type_.scale)), refused


def decimal_of(value: bytes | Decimal, precision: int, scale: int) -> Decimal | None:
    """A number, or a Decimal128's 16 bytes, as a decimal of this precision and scale; None if not equal."""
    if isinstance(value, bytes):
        text = decimal_text(value)
        value = Decimal("NaN" if text is None else text)
    if not value.is_finite() or (value.is_zero() and value.is_signed()):
        return None
    fitted = value.quantize(Decimal(1).scaleb(-scale), context=Context(prec=7000, traps=[]))
    return fitted if fitted == value and len(fitted.as_tuple().digits) <= precision else None


def decimal_texts(payload: npt.NDArray[np.void]) -> pa.Array:
    """Decimal128 values, 16 bytes each, as text; null if parsing the text would not give the same bytes.

    Vectorized for price-like values: up to 18 digits, up to 6 of them after the decimal point.
    """
    low, high = np.ascontiguousarray(payload).view("<u8").reshape(-1, 2).T
    places = _BIAS - ((high >> np.uint64(49)) & np.uint64(0x3FFF)).astype(np.int64)
    plain = (high & np.uint64(0x0001_FFFF_FFFF_FFFF) == 0) & (high >> np.uint64(61) & np.uint64(3) != 3)
    plain &= (low < np.uint64(10**18)) & (places >= 0) & (places <= 6)
    order, found = [], []
    for digits in np.unique(places[plain]).tolist():
        chosen = np.flatnonzero(plain & (places == digits))
        whole, rest = np.divmod(low[chosen].astype(np.int64), 10**digits)
        sign = pa.array(["", "-"]).take(pa.array((high[chosen] >> np.uint64(63)).astype(np.int8)))
        pieces = [sign, pa.array(whole).cast(pa.string())]
        if digits:
            pieces += [".", pc.utf8_lpad(pa.array(rest).cast(pa.string()), digits, "0")]
        order.append(chosen)
        found.append(pc.binary_join_element_wise(*pieces, ""))
    others = np.flatnonzero(~plain)
    order.append(others)
    found.append(pa.array([decimal_text(bytes(value)) for value in payload[others]], pa.string()))
    return pa.concat_arrays(found).take(pa.array(np.argsort(np.concatenate(order), kind="stable")))


def _of_subtype(view: View, subtype: int, parts: Parts, count: int) -> tuple[Part | None, Refused]:
    part = parts.get(raw.BINARY)
    refused = _others(parts, raw.BINARY)
    if part is None:
        return None, refused
    return _without(part, view.bytes[part.at + 4] != subtype, raw.BINARY, refused, count), refused


def _without(part: Part, wrong: Bools, kind: int, refused: Refused, count: int) -> Part:
    """The part without the wrong values, which are refused."""
    if not wrong.any():
        return part
    refused.append((kind, part.select(wrong, count)))
    return part.select(~wrong, count)


def _others(parts: Parts, *accepted: int) -> Refused:
    return [(kind, part) for kind, part in parts.items() if kind not in accepted]


# --- pieces ----------------------------------------------------------------------------------------------


def primitive(values: npt.NDArray[Any], present: Bools | None, arrow: pa.DataType) -> pa.Array:
    """An array of fixed-size values; ``present`` marks those that are not null (None: all)."""
    bitmap = None if present is None else _bitmap(present)
    data = _bitmap(values) if pa.types.is_boolean(arrow) else pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(arrow, len(values), [bitmap, data])


def placed(values: npt.NDArray[Any], rows: Ints | None, count: int, arrow: pa.DataType) -> pa.Array:
    """An array of fixed-size values at their rows, null elsewhere."""
    if native.library and rows is not None:
        buffers = native.library.scattered(values, rows, count)
        return pa.Array.from_buffers(arrow, count, [pa.py_buffer(each) for each in buffers])
    return primitive(*_spread(values, rows, count), arrow)


def strings(view: View, part: Part, count: int) -> pa.Array:
    """BSON strings at their rows: without the size in front of each, and the NUL behind it."""
    return texts(view, part.at, part.stop, part.rows, count, pa.string(), 4, 1)


def texts(
    view: View,
    starts: Ints,
    ends: Ints,
    rows: Ints | None,
    count: int,
    arrow: pa.DataType,
    head: int = 0,
    tail: int = 0,
) -> pa.Array:
    """Strings or binaries from the buffer, without so many bytes at the head and the tail of each.

    Without compiled code they are gathered by Arrow: the buffer is treated as one array of the values and the gaps
    between them, from which ``take`` selects the values: one offset per value and per gap, and one memcpy per
    value inside Arrow. That requires ascending positions, which is the order of the rows.
    """
    size = len(starts)
    if native.library:
        buffers = native.library.strings(view.data, starts, ends, rows, count, head, tail)
        return pa.Array.from_buffers(
            arrow, count, [None if each is None else pa.py_buffer(each) for each in buffers]
        )
    small = len(view.data) < 2**31
    offsets = np.empty(2 * size + 1, np.int32 if small else np.int64)
    offsets[0:-1:2] = starts + head
    offsets[1:-1:2] = ends - tail
    offsets[-1] = ends[-1] if size else 0
    large = pa.large_string() if arrow == pa.string() else pa.large_binary()
    of = arrow if small else large
    data = pa.py_buffer(offsets)
    gaps = pa.Array.from_buffers(of, 2 * size, [None, data, pa.py_buffer(view.data)])
    picked = gaps.take(pa.array(np.arange(0, 2 * size, 2, dtype=np.int32)))
    if not small:
        picked = picked.cast(arrow)
    if rows is None:
        return picked
    return _spread_texts(
        np.frombuffer(picked.buffers()[1], np.int32, size + 1), picked.buffers()[2], rows, count, arrow
    )


def _spread_texts(
    offsets: npt.NDArray[np.int32], data: pa.Buffer, rows: Ints, count: int, arrow: pa.DataType
) -> pa.Array:
    """Strings at their rows, null elsewhere, without copying their bytes."""
    present = np.zeros(count, bool)
    present[rows] = True
    places = np.zeros(count + 1, np.intp)
    np.cumsum(present, out=places[1:])
    spread = offsets[places]
    return pa.Array.from_buffers(arrow, count, [_bitmap(present), pa.py_buffer(spread), data])


def not_utf8(array: pa.Array) -> Bools | None:
    """Which strings of an array are not valid UTF-8; None if all are valid."""
    data = array.buffers()[2]
    if data is None or not len(data) or int(np.frombuffer(data, np.uint8).max()) < 0x80:
        return None
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        values = array.cast(pa.binary()).to_pylist()
        return np.array([value is not None and utf8(value) is None for value in values], bool)
    return None


def fixed_texts(characters: npt.NDArray[np.uint8], rows: Ints | None, count: int) -> pa.Array:
    """Strings of equal length: ``characters`` has a row for each."""
    size, width = characters.shape
    offsets = np.arange(0, (size + 1) * width, width, dtype=np.int32)
    data = pa.py_buffer(characters)
    if rows is None:
        return pa.Array.from_buffers(pa.string(), size, [None, pa.py_buffer(offsets), data])
    return _spread_texts(offsets, data, rows, count, pa.string())


def scattered(values: pa.Array, rows: Ints | None, count: int) -> pa.Array:
    """``values`` at their rows, null elsewhere."""
    return values if rows is None else values.take(_indices(np.arange(len(rows)), rows, count))


def _indices(picked: Ints, rows: Ints | None, count: int) -> pa.Array:
    """Indices for ``take``: ``picked`` at ``rows``, null elsewhere."""
    if rows is None:
        return pa.array(picked)
    indices = np.zeros(count, np.int64)
    indices[rows] = picked
    present = np.zeros(count, bool)
    present[rows] = True
    return primitive(indices, present, pa.int64())


def hex_digits(raw: npt.NDArray[Any], width: int) -> npt.NDArray[np.uint8]:
    """The hex digits of values of ``width`` bytes, a row of ``2 * width`` characters for each."""
    digits = binascii.hexlify(np.ascontiguousarray(raw).tobytes())
    return np.frombuffer(digits, np.uint8).reshape(-1, 2 * width)


def _spread(values: npt.NDArray[Any], rows: Ints | None, count: int) -> tuple[npt.NDArray[Any], Bools | None]:
    """The values at their rows, and which rows have one (None: all)."""
    if rows is None:
        return np.ascontiguousarray(values), None
    spread = np.zeros(count, values.dtype)
    spread[rows] = values
    present = np.zeros(count, bool)
    present[rows] = True
    return spread, present


def _bitmap(bits: npt.NDArray[Any] | None) -> pa.Buffer | None:
    return None if bits is None else pa.py_buffer(np.packbits(bits, bitorder="little"))


_ANY = lambda _: None  # noqa: E731
_BUILDERS: dict[str, Any] = {
    "float64": _numbers({raw.DOUBLE: _ANY, raw.INT32: _ANY, raw.INT64: _exact_as_double}, pa.float64()),
    "int64": _numbers({raw.INT32: _ANY, raw.INT64: _ANY, raw.DOUBLE: _whole(-(2.0**63), 2.0**63)}, pa.int64()),
    "int32": _numbers(
        {raw.INT32: _ANY, raw.INT64: _fits_int32, raw.DOUBLE: _whole(-(2.0**31), 2.0**31)}, pa.int32()
    ),
    "timestamp": _numbers({raw.DATE: fitting_dates}, MILLISECONDS),
    "bool": _booleans,
    "string": _strings,
    "binary": _binaries,
    "uuid": _uuids,
    "object_id": _object_ids,
    "object_id_binary": _binary_object_ids,
    "decimal": _decimals,
    "decimal128": _fixed_decimals,
}
