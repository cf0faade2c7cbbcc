"""The merge key: an ``_id`` as canonical text, ``_cdc_id``.

Two values have the same text exactly if MongoDB considers them the same ``_id`` (under the simple collation; one
that ignores case makes more values equal, which cannot be seen from a single value). So:

- numbers are written by their exact value, whatever their type: ``1``, ``1.0``, ``Int64(1)`` and
  ``Decimal128("1.0")`` are ``1``; a zero has no sign; there is one NaN, and one infinity of each sign;
- a symbol equals the string of its characters, and any non-zero byte is true;
- this applies inside documents, arrays and scopes of code too; the fields of a document keep their order;
- all other types are distinct, and are written in relaxed Extended JSON.

Documents are JSON objects, in which a name that starts with ``$`` gets another ``$``, so that an embedded
``{"$oid": "..."}`` is not taken for an ObjectId.

``merge_key`` is the definition, for one value from its bytes; ``merge_keys`` does the same for a column's parts,
vectorized for the common types. Tests check that the two agree, and the definition against a real server's unique
index.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Context, Decimal
from struct import Struct as Layout

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from bson.decimal128 import Decimal128

from engine.decode.columns import fixed_texts, hex_digits, primitive, scattered
from engine.decode.cursor import Flag, Part, View
from engine.decode.json import MAX_DEPTH, as_bson, text_json, utf8, value_json, values_json, within
from engine.rawbson import elements as raw
from engine.rawbson.elements import MalformedBSON

_INT32, _INT64, _DOUBLE = Layout("<i").unpack_from, Layout("<q").unpack_from, Layout("<d").unpack_from
# The digits of a Decimal128: a number with more of them is a double that equals no value of another type.
_DIGITS = 34
_EXACT = Context(prec=800, Emin=-7000, Emax=7000)  # the longest double has 767 digits


def merge_key(data: bytes, kind: int, at: int, stop: int, depth: int = 0) -> str:
    """The canonical text of the value of type ``kind`` from ``at`` to ``stop``.

    Raises:
        MalformedBSON: it is not a valid value of its type.
    """
    if depth > MAX_DEPTH:
        raise MalformedBSON(f"more than {MAX_DEPTH} levels at byte {at}")
    match kind:
        case raw.INT32:
            return str(_INT32(data, at)[0])
        case raw.INT64:
            return str(_INT64(data, at)[0])
        case raw.DOUBLE:
            return _double_text(_DOUBLE(data, at)[0])
        case raw.DECIMAL128:
            return _decimal_text(data[at:stop])
        case raw.BOOL:
            return "true" if data[at] else "false"
        case raw.STRING | raw.SYMBOL:
            text = utf8(data[at + 4 : stop - 1])
            return as_bson(raw.STRING, data[at:stop]) if text is None else text_json(text)
        case raw.DOCUMENT:
            return _document_text(data, at, stop, depth)
        case raw.ARRAY:
            values = within(data, at, stop)
            return "[" + ",".join([merge_key(data, each, a, b, depth + 1) for each, _, a, b in values]) + "]"
        case raw.CODE_WITH_SCOPE:
            scope = at + 8 + _INT32(data, at + 4)[0]
            value_json(data, kind, at, stop, depth)  # validates its lengths
            code = merge_key(data, raw.STRING, at + 4, scope, depth)
            return f'{{"$code":{code},"$scope":{_document_text(data, scope, stop, depth)}}}'
    return value_json(data, kind, at, stop, depth)


def _document_text(data: bytes, at: int, stop: int, depth: int) -> str:
    members = [
        f"{_name_text(name)}:{merge_key(data, kind, value, end, depth + 1)}"
        for kind, name, value, end in within(data, at, stop)
    ]
    return "{" + ",".join(members) + "}"


def _name_text(name: bytes) -> str:
    text = utf8(name)
    if text is None:
        return text_json(f"$x{name.hex()}")
    return text_json(f"${text}" if text.startswith("$") else text)


def _double_text(value: float) -> str:
    if math.isnan(value):
        return '{"$numberDouble":"NaN"}'
    if math.isinf(value):
        return _infinity(negative=value < 0)
    return _number_text(Decimal(value)) or f'{{"$numberDouble":"{value!r}"}}'


def _decimal_text(bid: bytes) -> str:
    value = Decimal128.from_bid(bid).to_decimal()
    if value.is_nan():
        return '{"$numberDouble":"NaN"}'
    if value.is_infinite():
        return _infinity(negative=value.is_signed())
    text = _number_text(value)
    assert text is not None, "a Decimal128 has at most 34 digits"
    return text


def _infinity(*, negative: bool) -> str:
    return '{"$numberDouble":"-Infinity"}' if negative else '{"$numberDouble":"Infinity"}'


def _number_text(value: Decimal) -> str | None:
    """The text of a finite number, unique for each value; None for one that only a double can have."""
    sign, digits, exponent = value.normalize(_EXACT).as_tuple()
    assert isinstance(exponent, int)
    if digits == (0,):
        return "0"
    if len(digits) > _DIGITS:
        return None
    text = "".join(map(str, digits))
    minus = "-" if sign else ""
    if exponent >= 0 and len(text) + exponent <= _DIGITS:
        return f"{minus}{text}{'0' * exponent}"
    if -_DIGITS <= exponent < 0:
        text = text.rjust(1 - exponent, "0")
        return f"{minus}{text[:exponent]}.{text[exponent:]}"
    return f"{minus}{text}E{exponent}"


# --- by column -------------------------------------------------------------------------------------------


def merge_keys(view: View, parts: Mapping[int, Part], count: int, odd: Flag) -> pa.Array:
    """``merge_key`` of one field's values, given by BSON type; null for a row without one.

    Args:
        odd: called with the rows whose value is malformed.
    """
    found = [(part, _texts(view, kind, part, odd, count)) for kind, part in parts.items() if len(part)]
    if not found:
        return pa.nulls(count, pa.string())
    if len(found) == 1:
        part, texts = found[0]
        return scattered(texts, part.rows, count)
    rows = np.concatenate([_rows(part, count) for part, _ in found])
    order = np.full(count, -1, np.int64)
    order[rows] = np.arange(len(rows), dtype=np.int64)
    return pa.concat_arrays([texts for _, texts in found]).take(pa.array(order, mask=order < 0))


def _rows(part: Part, count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.arange(count, dtype=np.int64) if part.rows is None else part.rows


def _texts(view: View, kind: int, part: Part, odd: Flag, count: int) -> pa.Array:
    match kind:
        case raw.OBJECT_ID:
            return object_id_texts(part, b'{"$oid":"', b'"}')
        case raw.INT32 | raw.INT64:
            assert part.payload is not None
            return primitive(part.payload.astype(np.int64), None, pa.int64()).cast(pa.string())
        case raw.DOUBLE:
            return _doubles(part)
        case raw.STRING:
            return pa.array(values_json(view.data, kind, part.at, part.stop), pa.string())
    return _one_by_one(view, kind, part, odd, count)


def _doubles(part: Part) -> pa.Array:
    assert part.payload is not None
    values = part.payload
    inside = np.where(np.abs(values) < 2.0**63, values, 0.5)
    whole = np.floor(inside) == inside
    integers = np.where(whole, inside, 0).astype(np.int64)
    texts = primitive(integers, None, pa.int64()).cast(pa.string())
    if whole.all():
        return texts
    others = pa.array([_double_text(value) for value in values[~whole].tolist()], pa.string())
    return pc.replace_with_mask(texts, pa.array(~whole), others)


def _one_by_one(view: View, kind: int, part: Part, odd: Flag, count: int) -> pa.Array:
    texts: list[str | None] = []
    bad: list[int] = []
    for index, (at, stop) in enumerate(zip(part.at.tolist(), part.stop.tolist(), strict=True)):
        try:
            texts.append(merge_key(view.data, kind, at, stop))
        except MalformedBSON:
            bad.append(index)
            texts.append(None)
    if bad:
        odd(_rows(part, count)[np.array(bad, np.int64)])
    return pa.array(texts, pa.string())


def object_id_texts(ids: Part, head: bytes, tail: bytes) -> pa.Array:
    """``head``, the 24 hex digits and ``tail`` for each of these ObjectIds."""
    assert ids.payload is not None
    characters = np.empty((len(ids), len(head) + 24 + len(tail)), np.uint8)
    characters[:, : len(head)] = np.frombuffer(head, np.uint8)
    characters[:, len(head) : len(head) + 24] = hex_digits(ids.payload, 12)
    characters[:, len(head) + 24 :] = np.frombuffer(tail, np.uint8)
    return fixed_texts(characters, None, len(ids))
