"""Rows of the fold in bounded memory: divided by a hash of their id, reduced, and put on disk when there are many.

A row of the fold has ``ID``, ``TIME`` and ``LATER`` besides the columns of the lake. ``reduced`` keeps what can
still count, whatever else there is: of each id, the last row that counts, the updates without a document after it,
and the first of the rows that are later than what is folded.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.fold import ENDINGS
from engine.footprint import held_bytes

ID, TIME, LATER = "_cdc_fold_id", "_cdc_fold_time", "_cdc_fold_later"

Rows = Sequence[pa.RecordBatch]
Ints = np.ndarray[tuple[int], np.dtype[np.int64]]
Bools = np.ndarray[tuple[int], np.dtype[np.bool_]]

# Columns that neither the fold nor a document needs.
UNUSED = {
    "_cdc_wall_time",
    "_cdc_database",
    "_cdc_collection",
    "_cdc_stream",
    "_cdc_before",
    "_cdc_txn",
    "_cdc_extra",
}

# A part that is larger than memory is divided into so many, by other bits of the hash, and these again. What is
# too large at the deepest level are the updates without a document of a few ids.
_WAYS, _DEEPEST = 16, 3


class Parts:
    """Rows divided into parts.

    State: of each part, the rows that are in memory, at most ``memory`` bytes in all, and a file with the others.
    Owner: the fold, or the part of it that is divided here.

    Args:
        directory: where the files are; must be empty.
        numbers_of: the part of each of some ids; -1 for those that are not wanted.
    """

    def __init__(
        self, directory: Path, memory: int, numbers_of: Callable[[Sequence[str]], Ints], level: int = 0
    ) -> None:
        self._directory = directory
        self._memory = memory
        self._numbers_of = numbers_of
        self._level = level
        self._held: dict[int, list[pa.RecordBatch]] = {}
        self._bytes: dict[int, int] = {}

    def add(self, rows: pa.RecordBatch) -> None:
        """Add rows."""
        found = self._numbers_of(rows.column(ID).to_pylist())
        order = np.argsort(found, kind="stable")
        order = order[np.searchsorted(found[order], 0) :]
        if not len(order):
            return
        # One copy in the order of the parts, of which each part gets a slice: a copy for each takes far more.
        sorted_ = rows.take(pa.array(order))
        starts = np.flatnonzero(np.diff(found[order], prepend=-1))
        size = held_bytes(sorted_)
        for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
            number = int(found[order[start]])
            self._held.setdefault(number, []).append(sorted_.slice(start, stop - start))
            self._bytes[number] = self._bytes.get(number, 0) + size * (stop - start) // len(order)
        if sum(self._bytes.values()) > self._memory:
            self.spill()

    def spill(self) -> None:
        """Put what is in memory on disk."""
        for number in list(self._held):
            self._spill(number)

    def _spill(self, number: int) -> None:
        with self._file(number).open("ab") as file:
            for batch in reduced(self._pop(number)):
                with pa.ipc.new_stream(file, batch.schema) as stream:
                    stream.write_batch(batch)

    def _pop(self, number: int) -> Rows:
        self._bytes.pop(number, None)
        return self._held.pop(number, [])

    @property
    def spilled(self) -> bool:
        """Whether there is anything on disk."""
        return any(self._directory.iterdir())

    def take(self, number: int) -> Iterator[Rows]:
        """The rows of a part, reduced, in groups; all rows of an id are in one. Call it once for each part."""
        path = self._file(number)
        if not path.exists():
            yield reduced(self._pop(number))
            return
        self._spill(number)
        size = path.stat().st_size
        if size <= self._memory or self._level == _DEEPEST:
            yield self._all(path)
            path.unlink()
            return
        below = self._directory / f"{number}.parts"
        below.mkdir()
        inner = Parts(below, self._memory, self._numbers_below, self._level + 1)
        for batch in _read(path):
            inner.add(batch)
        path.unlink()
        inner.spill()
        for each in range(_WAYS):
            yield from inner.take(each)
        below.rmdir()

    def _numbers_below(self, ids: Sequence[str]) -> Ints:
        return (hashes_of(ids) >> (8 + 4 * self._level)) % _WAYS

    def _all(self, path: Path) -> Rows:
        """A part from its file, without ever holding many more rows than can count."""
        found: list[pa.RecordBatch] = []
        size = 0
        for batch in _read(path):
            found.append(batch)
            size += held_bytes(batch)
            if size > self._memory:
                found = list(reduced(found))
                size = sum(map(held_bytes, found)) // 2
        return reduced(found)

    def _file(self, number: int) -> Path:
        return self._directory / f"{number}.arrow"


def hashes_of(ids: Sequence[str]) -> Ints:
    """The hash of each ``_cdc_id``: 32 bits, the same in every process."""
    return np.fromiter((zlib.crc32(id_.encode()) for id_ in ids), np.int64, len(ids))


def _read(path: Path) -> Iterator[pa.RecordBatch]:
    """The batches of a file, which is one stream after another, as each may have columns of its own."""
    size = path.stat().st_size
    with pa.OSFile(str(path)) as file:
        while file.tell() < size:
            with pa.ipc.open_stream(file) as stream:
                yield from stream


def reduced(rows: Rows) -> Rows:
    """The rows that can still count, in their batches."""
    rows = [batch for batch in rows if batch.num_rows]
    if not rows:
        return []
    ids = pa.chunked_array([batch.column(ID) for batch in rows]).combine_chunks().dictionary_encode()
    codes: Ints = ids.indices.to_numpy().astype(np.int64)
    later: Bools = _of_all(rows, LATER)
    kept = np.concatenate([_last(rows, codes, ~later), _first(rows, codes, later)])
    return _taken(rows, np.sort(kept))


def _of_all(rows: Rows, name: str) -> np.ndarray[tuple[int], np.dtype[Any]]:
    return np.concatenate([batch.column(name).to_numpy(zero_copy_only=False) for batch in rows])


def _last(rows: Rows, codes: Ints, chosen: Bools) -> Ints:
    """Of each id, the last row that counts, and the updates after it; of those of one event, one."""
    tokens = pa.chunked_array([_column(batch, "_cdc_token", pa.string()) for batch in rows]).combine_chunks()
    seqs = pa.chunked_array([_column(batch, "_cdc_seq", pa.int64()) for batch in rows]).combine_chunks()
    indices = np.flatnonzero(chosen)
    if not len(indices):
        return indices
    keys = {
        "code": pa.array(codes[indices]),
        "time": pa.array(_of_all(rows, TIME)[indices]),
        "read": pa.array(np.concatenate([is_read(batch) for batch in rows])[indices].astype(np.int8)),
        "token": tokens.take(pa.array(indices)),
        "whole": pa.array(np.concatenate([is_whole(batch) for batch in rows])[indices].astype(np.int64)),
        "seq": seqs.take(pa.array(indices)),
    }
    # Nulls come last: a row without a token is the earliest.
    by = [(name, "ascending" if name == "code" else "descending") for name in keys]
    table = pa.table(keys)
    order = pc.sort_indices(table, sort_keys=by)
    indices, sorted_ = indices[order.to_numpy()], table.take(order)
    whole = sorted_.column("whole").to_numpy()
    before = np.cumsum(whole) - whole
    starts = np.flatnonzero(np.diff(codes[indices], prepend=-1))
    counts = np.diff(starts, append=len(indices))
    again = _same_as_before(sorted_.column("token").combine_chunks())
    again[starts] = False
    kept: Ints = indices[(before == np.repeat(before[starts], counts)) & ~again]
    return kept


def _same_as_before(tokens: pa.Array) -> Bools:
    """Which tokens are that of the row before: after a rewind, an event has several rows."""
    codes = tokens.dictionary_encode(null_encoding="encode").indices.to_numpy()
    found: Bools = np.diff(codes, prepend=-1) == 0
    return found


def _first(rows: Rows, codes: Ints, chosen: Bools) -> Ints:
    """Of each id, the first of the later rows."""
    indices = np.flatnonzero(chosen)
    order = np.lexsort((_of_all(rows, TIME)[indices], codes[indices]))
    indices = indices[order]
    kept: Ints = indices[np.diff(codes[indices], prepend=-1) != 0]
    return kept


def _taken(rows: Rows, kept: Ints) -> Rows:
    edges = np.cumsum([0, *(batch.num_rows for batch in rows)])
    bounds = np.searchsorted(kept, edges)
    found = []
    for batch, start, at, stop in zip(rows, edges[:-1], bounds[:-1], bounds[1:], strict=True):
        if stop - at == batch.num_rows:
            found.append(batch)
        elif stop > at:
            found.append(batch.take(pa.array(kept[at:stop] - start)))
    return found


def _column(rows: pa.RecordBatch, name: str, type_: pa.DataType) -> pa.Array:
    return rows.column(name) if name in rows.schema.names else pa.nulls(rows.num_rows, type_)


def end_in(rows: pa.RecordBatch, times: pa.Array) -> int:
    """The latest time up to which these rows void all others of their collection; -1 for none."""
    ends = times.filter(pc.is_in(rows.column("_cdc_op"), pa.array(ENDINGS)))
    return max(ends.to_pylist(), default=-1)


def is_living(rows: pa.RecordBatch, end: int) -> Bools:
    """Which rows are not voided: those after the end, and those read at its very time."""
    times = rows.column(TIME).to_numpy()
    result: Bools = (times > end) | ((times == end) & is_read(rows))
    return result


def is_read(rows: pa.RecordBatch) -> Bools:
    """Which rows are documents that a backfill read."""
    return _true(pc.equal(rows.column("_cdc_op"), "read"))


def is_whole(rows: pa.RecordBatch) -> Bools:
    """Which rows count: all but updates that came without their document."""
    if "_cdc_has_document" not in rows.schema.names:
        return np.ones(rows.num_rows, bool)
    bare = pc.and_kleene(pc.equal(rows.column("_cdc_op"), "update"), pc.invert(rows.column("_cdc_has_document")))
    return ~_true(bare)


def _true(found: pa.Array) -> Bools:
    result: Bools = pc.fill_null(found, False).to_numpy(zero_copy_only=False)
    return result
