"""The fold of ``engine.fold`` in bounded memory: a collection's documents at a time, from any number of rows.

Rows are added in any order. They are divided by a hash of their ``_cdc_id`` into partitions, which are folded one
after another; what does not fit into memory waits on disk, as Arrow IPC, in a directory that is removed in the end
(``spill``). Rows that can no longer count are dropped as early as possible, so that a document that was rewritten
a million times takes no more room than others. Two facts make that possible:

- which rows of an id are left (the last one that counts, and the updates without a document after it) does not
  depend on how the rows are grouped;
- ``drop``, ``rename`` and ``loaded`` void everything up to a time, so this can be applied to what is left.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.core.position import token_time
from engine.lake.documents.inverse import documents
from engine.lake.folding.spill import (
    ID,
    LATER,
    TIME,
    UNUSED,
    Bools,
    Ints,
    Parts,
    Rows,
    end_in,
    hashes_of,
    is_living,
    is_whole,
)
from engine.scratch import scratch

PARTITIONS = 64
# So many documents are held at once.
_AT_ONCE = 1024


class Next(NamedTuple):
    """The first row of an id after the time up to which is folded: its cluster time and its ``_cdc_op``."""

    time: int
    operation: str


class Current(NamedTuple):
    """A document as it stands.

    Attributes:
        id: its ``_cdc_id``.
        time: the cluster time of the row that it is from; of a ``read`` row, one before it was read.
        operation: that row's ``_cdc_op``.
        document: BSON; None if nothing is known of it but updates that came without the document.
        pending: the ``_cdc_update`` of the updates after that row that came without the document, in order.
        next: the first row after ``at``; None if there is none.
    """

    id: str
    time: int
    operation: str
    document: bytes | None
    pending: tuple[str, ...] = ()
    next: Next | None = None


class Partition(NamedTuple):
    """The documents of the ids that have one hash.

    Attributes:
        number: 0 to ``PARTITIONS - 1``.
        documents: in any order.
        unknown: the ids without any row up to ``at`` whose first row after it is no insert: there may have been a
            document, and the lake does not have it. Complete when ``documents`` is exhausted.
    """

    number: int
    documents: Iterator[Current]
    unknown: list[str]


def partition_of(id_: str) -> int:
    """The partition of a ``_cdc_id``."""
    return int(hashes_of([id_])[0]) % PARTITIONS


class Fold:
    """Folds the rows of one collection; a context manager, which removes what it has on disk.

    State: the rows that can still count, and the time up to which all is void. Owner: the command that folds.

    Args:
        at: a cluster time: rows after it do not count. None for all.
        memory: about how many bytes of rows are held at once, besides the batch that is added.
        directory: where rows wait; None for the system's temporary directory.
        known: see ``documents.inverse.documents``.
        without: partitions that are not wanted.
    """

    def __init__(
        self,
        *,
        at: int | None = None,
        memory: int = 256 * 2**20,
        directory: Path | None = None,
        known: pa.Schema | None = None,
        without: Collection[int] = (),
    ) -> None:
        self._at = at
        self._known = known
        self._without = frozenset(without)
        self._directory = scratch("fold", directory)
        self._parts = Parts(self._directory, memory // 2, self._numbers_of)
        self._end = -1
        self.rows = 0

    def _numbers_of(self, ids: Sequence[str]) -> Ints:
        numbers = hashes_of(ids) % PARTITIONS
        return np.where(np.isin(numbers, [*self._without]), -1, numbers) if self._without else numbers

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._directory)

    def add(self, rows: pa.RecordBatch) -> None:
        """Add rows of the collection, with all their columns.

        Raises:
            OSError: the disk is full.
        """
        self.rows += rows.num_rows
        placed = _placed(rows, self._at)
        later: Bools = placed.column(LATER).to_numpy(zero_copy_only=False)
        if later.all():
            placed = placed.select([ID, TIME, LATER, "_cdc_op"])
        elif later.any():
            self._add(placed.filter(pa.array(later)).select([ID, TIME, LATER, "_cdc_op"]))
            placed = placed.filter(pa.array(~later))
        self._add(placed)

    def _add(self, placed: pa.RecordBatch) -> None:
        if not placed.column(LATER).true_count:
            self._end = max(self._end, end_in(placed, placed.column(TIME)))
        self._parts.add(placed.filter(placed.column(ID).is_valid()))

    def partitions(self) -> Iterator[Partition]:
        """The partitions that are wanted, in order; each must be exhausted before the next one is asked for."""
        if self._parts.spilled:
            self._parts.spill()
        for number in range(PARTITIONS):
            if number not in self._without:
                unknown: list[str] = []
                yield Partition(number, self._documents(number, unknown), unknown)

    def _documents(self, number: int, unknown: list[str]) -> Iterator[Current]:
        for rows in self._parts.take(number):
            later = {
                id_: Next(time, operation)
                for batch in rows
                for id_, time, operation in _tuples(batch.filter(batch.column(LATER)), ID, TIME, "_cdc_op")
            }
            rest = [batch.filter(pc.invert(batch.column(LATER))) for batch in rows]
            for each in self._current(rest):
                yield each._replace(next=later.get(each.id))
            for batch in rest:
                for id_ in batch.column(ID).to_pylist():
                    later.pop(id_, None)
            unknown += [id_ for id_, each in later.items() if each.operation != "insert"]

    def _current(self, rows: Rows) -> Iterator[Current]:
        """The documents of the rows that are left."""
        living = [batch.filter(pa.array(is_living(batch, self._end))) for batch in rows]
        whole = [is_whole(batch) for batch in living]
        pending = _pending([batch.filter(pa.array(~mask)) for batch, mask in zip(living, whole, strict=True)])
        for batch, mask in zip(living, whole, strict=True):
            counted = batch.filter(pa.array(mask))
            for at in range(0, counted.num_rows, _AT_ONCE):
                yield from self._built(counted.slice(at, _AT_ONCE), pending)
        for id_, updates in pending.items():
            yield Current(id_, updates[-1][0], "update", None, _texts(updates))

    def _built(self, rows: pa.RecordBatch, pending: _Pending) -> Iterator[Current]:
        own = rows.drop_columns([ID, TIME, LATER])
        facts = _tuples(rows, ID, TIME, "_cdc_op")
        for (id_, time, operation), document in zip(facts, documents(own, self._known), strict=True):
            updates = pending.pop(id_, [])
            if operation != "delete":
                yield Current(id_, time, operation, document, _texts(updates))


# Of each id: time, token and ``_cdc_update`` of its updates, in order.
_Pending = dict[str, list[tuple[int, str, str]]]


def _pending(rows: Rows) -> _Pending:
    found: _Pending = {}
    for batch in rows:
        for id_, *update in _tuples(batch, ID, TIME, "_cdc_token", "_cdc_update"):
            found.setdefault(id_, []).append((update[0], update[1] or "", update[2]))
    for updates in found.values():
        updates.sort()
    return found


def _texts(updates: list[tuple[int, str, str]]) -> tuple[str, ...]:
    return tuple(text for _, _, text in updates)


def _tuples(rows: pa.RecordBatch, *names: str) -> Iterator[tuple[Any, ...]]:
    if not rows.num_rows:
        return iter(())
    return zip(*(rows.column(name).to_pylist() for name in names), strict=True)


# --- rows with what the fold needs -----------------------------------------------------------------------


def _placed(rows: pa.RecordBatch, at: int | None) -> pa.RecordBatch:
    """The rows with their id and time, also if they are from before these had columns; see ``engine.fold``."""
    times = _times(rows)
    later = pa.repeat(pa.scalar(False), rows.num_rows) if at is None else pc.greater(times, at)
    names = [name for name in rows.schema.names if name not in UNUSED]
    schema = pa.schema([(ID, pa.string()), (TIME, pa.int64()), (LATER, pa.bool_())])
    columns = [_ids(rows), times, later, *(rows.column(name) for name in names)]
    fields = [*schema, *(rows.schema.field(name) for name in names)]
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))


def _ids(rows: pa.RecordBatch) -> pa.Array:
    ids = _column(rows, "_cdc_id", pa.string())
    if not ids.null_count:
        return ids
    keys = rows.column("_cdc_key").to_pylist()
    found = [id_ or (_id_in(key) if key else None) for id_, key in zip(ids.to_pylist(), keys, strict=True)]
    return pa.array(found, pa.string())


def _id_in(key: str) -> str | None:
    members = json.loads(key)
    return json.dumps(members["_id"], separators=(",", ":"), ensure_ascii=False) if "_id" in members else None


def _times(rows: pa.RecordBatch) -> pa.Array:
    times = _column(rows, "_cdc_timestamp", pa.int64())
    if not times.null_count:
        return times
    tokens = rows.column("_cdc_token").to_pylist()
    milliseconds = rows.column("_cdc_cluster_time").cast(pa.int64()).to_pylist()
    found = [
        time or token_time(token or "") or (ms or 0) // 1000 << 32
        for time, token, ms in zip(times.to_pylist(), tokens, milliseconds, strict=True)
    ]
    return pa.array(found, pa.int64())


def _column(rows: pa.RecordBatch, name: str, type_: pa.DataType) -> pa.Array:
    return rows.column(name) if name in rows.schema.names else pa.nulls(rows.num_rows, type_)
