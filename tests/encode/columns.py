"""Hypothesis strategies for schemas and batches of every type, each with its rows as Python objects.

The rows are made together with the arrays, not read out of them: times as milliseconds, decimals as their unscaled
integers. Arrays are sliced out of larger ones at every level, and nulls hide values.
"""

from __future__ import annotations

from decimal import Context, Decimal
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

Column = tuple[pa.Array, list[Any]]
Rows = list[dict[str, Any]]

_texts = st.one_of(st.text(max_size=5), st.text('ab,"\\/\b\n\x00\x1f\x7f\u2028é😀', max_size=8))
_int64 = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-200, 200),
    st.sampled_from([-(2**63), 2**63 - 1, 2**53 + 1, -(2**53) - 1, 63, 64, -64, -65, 8191, 8192]),
)
_doubles = st.one_of(
    st.floats(width=64),
    st.integers(-(10**18), 10**18).map(float),
    st.sampled_from([0.0, -0.0, 1.0, -12.0, 1e15, 1e16, 1e21, 1e22, 5e-324, 1e-7, 0.1, 2.0**63, 1.7e308]),
)
_times = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-(10**13), 4 * 10**12),
    st.sampled_from([0, -1, 1, -62135596800000, -62135596800001, 253402300799999, 253402300800000]),
)


def _decimals(type_: pa.Decimal128Type) -> st.SearchStrategy[int]:
    largest = 10**type_.precision - 1
    limits = [
        sign * (2**bits + more) for bits in (7, 8, 15, 63, 64, 103) for sign in (-1, 1) for more in (-1, 0, 1)
    ]
    fitting = [each for each in limits if abs(each) <= largest]
    return st.one_of(st.integers(-largest, largest), st.sampled_from([0, *fitting]))


_LEAVES: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.string(): _texts,
    pa.int64(): _int64,
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.float64(): _doubles,
    pa.bool_(): st.booleans(),
    pa.binary(): st.binary(max_size=7),
    pa.binary(12): st.binary(min_size=12, max_size=12),
    pa.timestamp("ms", "UTC"): _times,
    **{each: _decimals(each) for each in (pa.decimal128(2, 2), pa.decimal128(9, 2), pa.decimal128(38, 10))},
}


def _fields(types: st.SearchStrategy[pa.DataType], least: int) -> st.SearchStrategy[list[pa.Field]]:
    each = st.tuples(_texts, types).map(lambda pair: pa.field(*pair))
    return st.lists(each, min_size=least, max_size=4, unique_by=lambda field: field.name)


def _nested(types: st.SearchStrategy[pa.DataType]) -> st.SearchStrategy[pa.DataType]:
    return st.one_of(_fields(types, 0).map(pa.struct), types.map(lambda item: pa.list_(pa.field("element", item))))


types = st.recursive(st.sampled_from(list(_LEAVES)), _nested, max_leaves=6)
schemas = _fields(types, 1).map(pa.schema)


@st.composite
def columns(draw: st.DrawFn, type_: pa.DataType, count: int) -> Column:
    """An array of a type that was cut out of a larger one, and its values."""
    before, after = draw(st.sampled_from([(0, 0), (0, 0), (1, 0), (0, 2), (9, 1)]))
    array, values = _whole(draw, type_, before + count + after)
    return array.slice(before, count), values[before : before + count]


def _whole(draw: st.DrawFn, type_: pa.DataType, count: int) -> Column:
    share = draw(st.sampled_from([(False,), (True,), (False, True), (False, False, False, True)]))
    nulls = draw(st.lists(st.sampled_from(share), min_size=count, max_size=count))
    values: list[Any]
    if pa.types.is_struct(type_):
        children = [draw(columns(field.type, count)) for field in type_]
        names = [field.name for field in type_]
        values = [dict(zip(names, row, strict=True)) for row in zip(*(each for _, each in children), strict=True)]
        arrays = [each for each, _ in children]
        mask = pa.array(nulls, pa.bool_())
        array = (
            pa.StructArray.from_arrays(arrays, fields=list(type_), mask=mask)
            if arrays
            else pa.array([None if null else {} for null in nulls], type_)
        )
        values = values if arrays else [{}] * count
    elif pa.types.is_list(type_):
        lengths = draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
        ends = list(accumulate(lengths, initial=0))
        items, each = draw(columns(type_.value_type, ends[-1]))
        values = [each[start:end] for start, end in pairwise(ends)]
        mask = pa.array(nulls, pa.bool_())
        array = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), items, type_, mask=mask)
    else:
        values = draw(st.lists(_LEAVES[type_], min_size=count, max_size=count))
        array = pa.array([_of_arrow(value, type_) for value in values], type_, mask=np.array(nulls, bool))
    return array, [None if null else value for null, value in zip(nulls, values, strict=True)]


def _of_arrow(value: Any, type_: pa.DataType) -> Any:
    return Decimal(value).scaleb(-type_.scale, Context(prec=40)) if pa.types.is_decimal(type_) else value


@st.composite
def files(draw: st.DrawFn) -> tuple[pa.Schema, list[pa.RecordBatch], Rows]:
    """A schema, batches that may lack some of its columns, and their rows."""
    schema = draw(schemas)
    batches, rows = [], []
    for _ in range(draw(st.integers(1, 2))):
        count = draw(st.integers(0, 4))
        present = draw(st.lists(st.sampled_from(list(schema)), min_size=1, unique_by=lambda field: field.name))
        found = {field.name: draw(columns(field.type, count)) for field in present}
        arrays = [found[field.name][0] for field in present]
        batches.append(pa.RecordBatch.from_arrays(arrays, schema=pa.schema(present)))
        names = [field.name for field in schema]
        rows += [{name: found[name][1][row] if name in found else None for name in names} for row in range(count)]
    return schema, batches, rows


def deep() -> tuple[pa.RecordBatch, Any]:
    """Three rows of a column ``a``, nested 100 levels deep, the second null; and the value of the others."""
    value: Any = 1
    type_ = pa.int64()
    for level in range(100):
        value, type_ = ({"x": value}, pa.struct([("x", type_)])) if level % 2 else ([value], pa.list_(type_))
    return pa.record_batch([pa.array([value, None, value], type_)], ["a"]), value


def sparse(name: str) -> tuple[pa.RecordBatch, Rows]:
    """Fifty rows of 500 columns, ``name`` and a number, with ten values in each; the rows without what is null."""
    values = [pa.array([n if n % 50 == row else None for row in range(50)]) for n in range(500)]
    batch = pa.record_batch(values, [f"{name}{n}" for n in range(500)])
    return batch, [{f"{name}{n}": n for n in range(row, 500, 50)} for row in range(50)]
