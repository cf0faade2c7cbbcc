"""Documents as far as the lake can tell them apart.

A document of the source and the one that the lake gives back for it are the same if their normal forms are. The
normal form is a BSON document, so that it can be shown:

- the fields of a document are in the order of their names, at every level;
- fields that are null or undefined are left out, and such elements of an array are null;
- (neither is so in a document that has a name twice, which the lake keeps as a whole);
- a number that an Int64 can have is an Int64, whether it was an int32, an Int64 or a double (a negative zero stays
  a double);
- everything else is as it was, to the byte.

``inverse.UNTOLD`` says why. A collection with a ``decimal128(P, S)`` column, which takes integers and doubles
too, is compared with ``decimals``.
"""

from __future__ import annotations

import math
from decimal import Decimal, Inexact, localcontext
from struct import Struct as Layout

from bson.decimal128 import Decimal128, create_decimal128_context

from engine.lake.documents import elements as el
from engine.lake.documents.elements import Value

_DOUBLE = Layout("<d").unpack
_SIGN = b"\x80"


def normal_form(document: bytes, *, decimals: bool = False) -> bytes:
    """A document without what the lake does not tell, as BSON.

    Args:
        decimals: a Decimal128 is equal to any number of its value, however many zeros it has behind the point.

    Raises:
        ValueError: it is not BSON.
    """
    found = [(name, _value(value, decimals)) for name, value in el.fields(document)]
    if _is_ambiguous([name for name, _ in found]):
        return el.framed([el.element(*each) for each in found])
    there = [each for each in found if each[1][0] not in el.NOTHING]
    return el.framed([el.element(*each) for each in sorted(there, key=lambda each: each[0])])


def _is_ambiguous(names: list[bytes]) -> bool:
    """Whether a name occurs twice or is not valid UTF-8: such a document is in the lake as a whole."""
    try:
        b"\0".join(names).decode()
    except UnicodeDecodeError:
        return True
    return len(set(names)) < len(names)


def _value(value: Value, decimals: bool) -> Value:
    kind, data = value
    match kind:
        case el.DOCUMENT:
            return kind, normal_form(data, decimals=decimals)
        case el.ARRAY:
            items = [(name, _item(_value(each, decimals))) for name, each in el.fields(data)]
            return kind, el.framed([el.element(*each) for each in items])
        case el.CODE_WITH_SCOPE:
            scope = 8 + int.from_bytes(data[4:8], "little")
            inner = data[4:scope] + normal_form(data[scope:], decimals=decimals)
            return kind, el.pack_int32(len(inner) + 4) + inner
        case el.INT32 | el.INT64:
            return el.INT64, el.pack_int64(int.from_bytes(data, "little", signed=True))
        case el.DOUBLE:
            return _double(data, decimals)
        case el.DECIMAL128 if decimals:
            return _decimal(Decimal128.from_bid(data), value)
    return value


def _item(value: Value) -> Value:
    return (el.NULL, b"") if value[0] in el.NOTHING else value


def _double(data: bytes, decimals: bool) -> Value:
    number = _DOUBLE(data)[0]
    if not math.isfinite(number) or (number == 0 and data[7:] == _SIGN):
        return el.DOUBLE, data
    if number.is_integer() and -(2.0**63) <= number < 2.0**63:
        return el.INT64, el.pack_int64(int(number))
    return _decimal(Decimal(number), (el.DOUBLE, data)) if decimals else (el.DOUBLE, data)


def _decimal(number: Decimal128 | Decimal, value: Value) -> Value:
    """The one form of a finite number that a Decimal128 can have, or else ``value``."""
    exact = number.to_decimal() if isinstance(number, Decimal128) else number
    if not exact.is_finite():
        return value
    with localcontext(create_decimal128_context()) as context:
        context.traps[Inexact] = True
        try:
            short = context.create_decimal(exact).normalize()
        except Inexact:
            return value
    if short == short.to_integral_value() and abs(short) < 2**63 and not (short == 0 and short.is_signed()):
        return el.INT64, el.pack_int64(int(short))
    return el.DECIMAL128, Decimal128(short).bid
