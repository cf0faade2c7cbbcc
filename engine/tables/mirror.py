"""A mirror: a table with one row for each document, as the collection stands, by the rule of ``engine.fold``.

It is merged from the changelog table. A merge takes the rows of the segments that it has not had yet, and with
them all other rows that are not older than the oldest of these: so of each document that is concerned, whatever
could have happened after a late row is there, its deletion too, which the mirror itself does not show. Drops,
renames and marks of loads among these rows void what the mirror has from before. Which rows are left does not
depend on how they are grouped (``lake.folding``), so the mirror's own row of a document stands for all before it.

The files of a mirror hold disjoint ranges of ``_cdc_id``, sorted; so a merge rewrites those in whose ranges
something has changed, and no others. New documents mostly have ids beyond all others, and what changes is often
what is new. A file is about ``FILE_BYTES`` of rows in memory, and one range is merged at a time.

A merge is one commit of the table: the new files for the old ones, and up to which segment of each stream it has
the changelog. Whoever finds the table changed meanwhile starts again from what it says.
"""

from __future__ import annotations

import shutil
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.config.tree import SinkConfig
from engine.core.naming import parts_of
from engine.lake.batches import combined
from engine.lake.folding.spill import ID, LATER, TIME, UNUSED, Ints, Parts, Rows, end_in, is_living, is_whole
from engine.lake.objects import Objects
from engine.scratch import scratch
from engine.sink.objects import Sink
from engine.tables.files import NewFile, batches_of, waiting_on_disk
from engine.tables.table import DataFile, Table, TableFile

# Of rows in memory: what one file has, and what is held beside the range that is merged.
FILE_BYTES = 24 * 2**20
MEMORY = 80 * 2**20
# Up to this size of the files that are read, compressed, ids are not looked at beforehand.
_SMALL_BYTES = 8 * 2**20
# Neighbouring files that are smaller together become one when one of them is rewritten.
_FEW_BYTES = 2**20
_SAMPLE_MAX = 100_000
_OPERATION = "merge a mirror"
# So much of an id orders the files.
_PREFIX = 64
_UPDATE, _PENDING = "_cdc_update", "_cdc_pending"
_UPDATES = pa.list_(
    pa.struct(
        [
            pa.field("_cdc_timestamp", pa.int64()),
            pa.field("_cdc_token", pa.string()),
            pa.field("_cdc_seq", pa.int64()),
            pa.field(_UPDATE, pa.string()),
        ]
    )
)
# What an update needs to be one, besides what is in ``_cdc_pending``.
_OF_UPDATE = ("_cdc_key", "_cdc_cluster_time", "_id")


class Merged(NamedTuple):
    """What a merge has done.

    Attributes:
        rows: of the changelog, that were read.
        removed, files: how many files it has replaced, and by how many.
        written: rows in the new files.
        bytes: of the new files.
    """

    rows: int = 0
    removed: int = 0
    files: int = 0
    written: int = 0
    bytes: int = 0


class Mirror:
    """One mirror.

    State: what is read for the current merge; nothing between two.

    Args:
        changes, table: the changelog and the mirror.
        directory: of the mirror's files: ``<database>/<name>/``.
        beat: called now and then.
        segments: up to which segments of which streams the changelog's files have rows, as far as it is known.
    """

    def __init__(
        self,
        sink: Sink,
        config: SinkConfig,
        objects: Objects,
        changes: Table,
        table: Table,
        directory: str,
        beat: Callable[[], None],
        segments: dict[str, Mapping[str, int]],
    ) -> None:
        self._segments = segments
        self._config = config
        self._sink = sink
        self._objects = objects
        self._changes, self._table = changes, table
        self._directory = directory
        self._beat = beat

    def merge(self) -> Merged:
        """Bring the mirror to what the changelog says; once, or not at all.

        Raises:
            ConflictError: somebody else has changed the mirror meanwhile, or the outcome is not known.
            HeadraceError: of the catalog, the store, or a damaged file.
        """
        had = self._table.coverage()
        leaves = self._table.files()
        self._changes.coverage()
        changes = self._changes.files()
        for key in self._segments.keys() - {each.key for each in changes}:
            del self._segments[key]
        news = [
            each
            for each in changes
            if any(seq > had.get(stream, -1) for stream, seq in self._segments_of(each).items())
        ]
        if not news:
            return Merged()
        since = min(each.bounds.oldest if each.bounds else 0 for each in news)
        known = {each.key for each in news}
        again = [
            each
            for each in changes
            if each.key not in known and (each.bounds is None or each.bounds.newest >= since)
        ]
        reached: dict[str, int] = {}
        for each in news:
            for stream, seq in self._segments_of(each).items():
                reached[stream] = max(seq, reached.get(stream, -1))
        with waiting_on_disk(_OPERATION):
            directory = scratch("mirror")
            try:
                merge = _Merge(self._objects, leaves, [*news, *again], since, directory, self._beat)
                merge.read()
                return self._commit(merge, reached)
            finally:
                shutil.rmtree(directory)

    def _segments_of(self, file: TableFile) -> Mapping[str, int]:
        """The last segment of each stream that a file has rows of; of a compacted one, only the rows tell."""
        if parts := parts_of(file.key):
            return {parts.stream: parts.seq}
        if file.key not in self._segments:
            self._segments[file.key] = self._read_segments(file)
        return self._segments[file.key]

    def _read_segments(self, file: TableFile) -> Mapping[str, int]:
        found: dict[str, int] = {}
        names = ["_cdc_stream", "_cdc_seq"]
        for batch in batches_of(self._objects, file, _OPERATION, lambda *_: names):
            rows = pa.table(batch).group_by("_cdc_stream").aggregate([("_cdc_seq", "max")])
            for stream, seq in zip(rows["_cdc_stream"].to_pylist(), rows["_cdc_seq_max"].to_pylist(), strict=True):
                found[stream] = max(seq, found.get(stream, -1))
        return found

    def _commit(self, merge: _Merge, reached: Mapping[str, int]) -> Merged:
        done = Merged(rows=merge.rows)
        removed: list[TableFile] = []
        added: list[DataFile] = []
        for old, new in merge.replaced():
            removed += old
            added += [self._written(each) for each in new]
        if added or removed or self._table.identity:  # a table comes with its first file
            self._table.commit(_of_one_schema(added), reached, removed)
        return done._replace(
            removed=len(removed),
            files=len(added),
            written=sum(each.rows for each in added),
            bytes=sum(each.size for each in added),
        )

    def _written(self, rows: pa.Table) -> DataFile:
        ids = rows.column("_cdc_id")
        with NewFile(self._sink, self._config, self._directory, rows.schema) as file:
            file.write(rows.to_batches())
            self._beat()
            return file.publish(*_about(ids[0].as_py(), ids[-1].as_py()))


def _of_one_schema(files: Sequence[DataFile]) -> list[DataFile]:
    """The files, numbered by the schemas that they have."""
    versions: list[pa.Schema] = []
    found = []
    for each in files:
        number = next((at for at, known in enumerate(versions) if known.equals(each.schema)), len(versions))
        if number == len(versions):
            versions.append(each.schema)
        found.append(each._replace(version=number))
    return found


def _about(first: str, last: str) -> tuple[str, str]:
    """Bounds of ids of limited length: the first one cut, the last one cut and then raised."""
    if len(last) > _PREFIX:
        head = last[:_PREFIX]
        while head and ord(head[-1]) == 0x10FFFF:
            head = head[:-1]
        following = ord(head[-1]) + 1 if head else 0x10FFFF
        last = (head[:-1] + chr(0xE000 if following == 0xD800 else following)) if head else last
    return first[:_PREFIX], last


class _Leaf(NamedTuple):
    """Files of the mirror that hold one range of ids: one file, or several that overlap.

    Attributes:
        first, last: the range, both cut to ``_PREFIX`` characters.
        oldest: the least ``_cdc_timestamp``.
        size: of the files, in bytes.
    """

    first: str
    last: str
    oldest: int
    size: int
    files: Sequence[TableFile]


class _Unit(NamedTuple):
    """Leaves that are merged together, and the ranges that have their rows."""

    numbers: Sequence[int]
    leaves: Sequence[_Leaf]


class _Merge:
    """The rows of one merge.

    State: those of the changelog and of the leaves that are being merged, divided by ranges; the time up to which
    all is void. Owner: ``Mirror.merge``.

    Args:
        since: rows before it do not count: they are in the mirror already.
        directory: where rows wait that do not fit into memory.
    """

    def __init__(
        self,
        objects: Objects,
        leaves: Sequence[TableFile],
        changes: Sequence[TableFile],
        since: int,
        directory: Path,
        beat: Callable[[], None],
    ) -> None:
        self._objects = objects
        self._changes = changes
        self._since = since
        self._beat = beat
        self._leaves = _leaves_of(leaves)
        self._starts = self._ranges()
        self._parts = Parts(directory, MEMORY, self._numbers_of)
        self._touched: set[int] = set()
        self._end = -1
        self.rows = 0

    # --- where the rows go -------------------------------------------------------------------------------

    def _ranges(self) -> list[str]:
        """Where ranges begin after the first: where leaves do, and where new rows would be too many for one."""
        starts, size = [], 0
        for each in self._leaves:
            if size and size + each.size > _FEW_BYTES:
                starts.append(each.first)
                size = 0
            size += each.size
        if sum(each.size for each in self._changes) <= _SMALL_BYTES:
            return starts
        sample, every = list[str](), 1
        for file in self._changes:
            for batch in batches_of(self._objects, file, _OPERATION, lambda *_: ["_cdc_id"]):
                self._beat()
                ids = batch.column(0).drop_null()
                sample += [each[:_PREFIX] for each in ids[::every].to_pylist()]
                if len(sample) > _SAMPLE_MAX:
                    sample, every = sample[::2], every * 2
        sample.sort()
        at_once = max(1, FILE_BYTES // self._row_bytes() // every)  # of the sample
        found: list[str] = []
        for start, stop in zip(["", *starts], [*starts, None], strict=True):
            low = bisect_right(sample, start) if start else 0
            high = len(sample) if stop is None else bisect_right(sample, stop)
            found += [
                *([start] if start else []),
                *sample[low + at_once : max(low, high - at_once // 2) : at_once],
            ]
        return sorted({*found} - {""})

    def _row_bytes(self) -> int:
        """About how much memory a row takes."""
        first = next(
            (each for each in batches_of(self._objects, self._changes[0], _OPERATION, _wanted) if each.num_rows),
            None,
        )
        return max(1, 1 if first is None else _placed(first).nbytes // first.num_rows)

    def _numbers_of(self, ids: Sequence[str]) -> Ints:
        return np.fromiter((bisect_right(self._starts, each[:_PREFIX]) for each in ids), np.int64, len(ids))

    # --- reading -----------------------------------------------------------------------------------------

    def read(self) -> None:
        """Read the rows of the changelog that count."""
        for file in self._changes:
            for batch in combined(batches_of(self._objects, file, _OPERATION, _wanted)):
                rows = batch.filter(pc.greater_equal(batch.column("_cdc_timestamp"), self._since))
                self.rows += rows.num_rows
                self._end = max(self._end, end_in(rows, rows.column("_cdc_timestamp")))
                self._add(_placed(rows.filter(rows.column("_cdc_id").is_valid())))

    def _add(self, rows: pa.RecordBatch) -> None:
        if rows.num_rows:
            self._touched.update(map(int, np.unique(self._numbers_of(rows.column(ID).to_pylist()))))
            self._parts.add(rows)
        self._beat()

    # --- merging -----------------------------------------------------------------------------------------

    def replaced(self) -> Iterator[tuple[Sequence[TableFile], Sequence[pa.Table]]]:
        """What takes the place of what: files, and tables of rows sorted by ``_cdc_id``."""
        for unit in self._units():
            old = [file for leaf in unit.leaves for file in leaf.files]
            before = [_facts(batch) for file in old for batch in self._of_leaf(file)]
            tables = [
                table
                for number in unit.numbers
                for rows in self._parts.take(number)
                if (table := _standing(rows, self._end)) is not None
            ]
            self._beat()
            if not _same(before, tables):
                yield old, [piece for each in tables for piece in _cut(each)]

    def _units(self) -> Iterator[_Unit]:
        """What must be merged: ranges with new rows, and leaves with rows that are void."""
        units: list[_Unit] = []
        for leaf in self._leaves:
            numbers = range(bisect_right(self._starts, leaf.first), bisect_right(self._starts, leaf.last) + 1)
            if units and numbers[0] in units[-1].numbers:
                before = units.pop()
                numbers = range(before.numbers[0], max(numbers[-1], before.numbers[-1]) + 1)
                units.append(_Unit(numbers, [*before.leaves, leaf]))
            else:
                units.append(_Unit(numbers, [leaf]))
        taken = {number for unit in units for number in unit.numbers}
        units += [_Unit([number], []) for number in self._touched - taken]
        for unit in sorted(units, key=lambda each: each.numbers[0]):
            is_void = any(leaf.oldest <= self._end for leaf in unit.leaves)
            if is_void or not self._touched.isdisjoint(unit.numbers):
                yield unit

    def _of_leaf(self, file: TableFile) -> Iterator[pa.RecordBatch]:
        for batch in batches_of(self._objects, file, _OPERATION):
            for rows in as_changes(batch):
                self._add(_placed(rows))
            yield batch


def _leaves_of(files: Sequence[TableFile]) -> list[_Leaf]:
    """The leaves, in the order of their ranges; files whose bounds overlap, or are not known, are one."""
    found: list[_Leaf] = []
    for new in sorted((_leaf_of(each) for each in files), key=lambda each: each.first):
        if found and new.first <= found[-1].last:
            before = found.pop()
            last, oldest = max(before.last, new.last), min(before.oldest, new.oldest)
            found.append(_Leaf(before.first, last, oldest, before.size + new.size, [*before.files, *new.files]))
        else:
            found.append(new)
    return found


def _leaf_of(file: TableFile) -> _Leaf:
    bounds = file.bounds
    if bounds is None or bounds.first is None or bounds.last is None:
        return _Leaf("", chr(0x10FFFF) * _PREFIX, 0, file.size, [file])
    return _Leaf(bounds.first[:_PREFIX], bounds.last[:_PREFIX], bounds.oldest, file.size, [file])


def _wanted(_: pq.RowGroupMetaData, names: list[str]) -> list[str]:
    return [name for name in names if name not in UNUSED]


def _placed(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Rows as the fold has them; only updates without a document keep what they say."""
    names = [name for name in rows.schema.names if name not in UNUSED]
    columns = {name: rows.column(name) for name in names}
    if _UPDATE in columns:
        bare = pa.array(~is_whole(rows))
        columns[_UPDATE] = pc.if_else(bare, columns[_UPDATE], pa.scalar(None, columns[_UPDATE].type))
    fields = [rows.schema.field(name) for name in names]
    own = pa.schema([(ID, pa.string()), (TIME, pa.int64()), (LATER, pa.bool_())])
    arrays = [
        rows.column("_cdc_id"),
        rows.column("_cdc_timestamp"),
        pa.repeat(pa.scalar(False), rows.num_rows),
        *columns.values(),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema([*own, *fields]))


# --- the mirror's own rows -------------------------------------------------------------------------------


def as_changes(rows: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """A mirror's rows as rows of a changelog that would lead to them."""
    yield _whole_rows(rows)
    if pending := _pending_rows(rows):
        yield pending


def _whole_rows(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Those that have a document, or had one, without what is pending."""
    return rows.filter(pa.array(is_whole(rows))).drop_columns([_PENDING])


def _pending_rows(rows: pa.RecordBatch) -> pa.RecordBatch | None:
    """The updates that are pending, a row each, as they came."""
    pending = rows.column(_PENDING)
    if pending.null_count == rows.num_rows:
        return None
    of = pc.list_parent_indices(pending)
    updates = pc.list_flatten(pending)
    count = len(updates)
    columns = {name: updates.field(name) for name in ("_cdc_timestamp", "_cdc_token", "_cdc_seq", _UPDATE)}
    columns["_cdc_id"] = rows.column("_cdc_id").take(of)
    columns["_cdc_op"] = pa.repeat(pa.scalar("update"), count)
    columns["_cdc_has_document"] = pa.repeat(pa.scalar(False), count)
    fields = {name: pa.field(name, each.type) for name, each in columns.items()}
    for name in _OF_UPDATE:
        if name in rows.schema.names:
            columns[name], fields[name] = rows.column(name).take(of), rows.schema.field(name)
    return pa.RecordBatch.from_arrays([*columns.values()], schema=pa.schema([*fields.values()]))


# --- the rule --------------------------------------------------------------------------------------------


def _standing(rows: Rows, end: int) -> pa.Table | None:
    """The rows of the documents as they stand, sorted by ``_cdc_id``; None for none.

    Args:
        rows: of each id all that can count.
        end: what is before it does not.
    """
    living = [batch.filter(pa.array(is_living(batch, end))) for batch in rows]
    living = [batch for batch in living if batch.num_rows]
    if not living:
        return None
    table = pa.concat_tables([pa.Table.from_batches([each]) for each in living], promote_options="permissive")
    whole = np.concatenate([is_whole(each) for each in living])
    bare = table.filter(pa.array(~whole))
    table = table.filter(pa.array(whole))
    updates = _updates(bare)
    ids = table.column(ID).to_pylist() if updates else []
    pending = [updates.pop(id_, (None, -1))[0] for id_ in ids] if updates else None
    column = pa.nulls(table.num_rows, _UPDATES) if pending is None else pa.array(pending, _UPDATES)
    table = table.append_column(_PENDING, column)
    if updates:  # of documents of which nothing else is known
        last = bare.take(pa.array([at for _, at in updates.values()]))
        column = pa.array([told for told, _ in updates.values()], _UPDATES)
        table = pa.concat_tables([table, last.append_column(_PENDING, column)], promote_options="permissive")
    table = table.filter(pc.not_equal(table.column("_cdc_op"), "delete"))
    table = table.drop_columns([name for name in (ID, TIME, LATER, _UPDATE) if name in table.column_names])
    return table.take(pc.sort_indices(table, sort_keys=[("_cdc_id", "ascending")])) if table.num_rows else None


def _updates(bare: pa.Table) -> dict[str, tuple[list[dict[str, Any]], int]]:
    """Of each id, its updates without a document, in order, and the place of the last one."""
    if not bare.num_rows:
        return {}
    names = [ID, "_cdc_timestamp", "_cdc_token", "_cdc_seq", _UPDATE]
    rows = enumerate(bare.select(names).to_pylist())
    found: dict[str, tuple[list[dict[str, Any]], int]] = {}
    for at, row in sorted(rows, key=lambda each: (each[1]["_cdc_timestamp"], each[1]["_cdc_token"] or "")):
        id_ = row.pop(ID)
        told, _ = found.get(id_, ([], at))
        found[id_] = ([*told, row], at)
    return found


def _cut(table: pa.Table) -> Iterator[pa.Table]:
    """The rows in tables of about ``FILE_BYTES``."""
    pieces = max(1, round(table.nbytes / FILE_BYTES))
    for start, stop in pairwise(table.num_rows * number // pieces for number in range(pieces + 1)):
        if stop > start:
            yield table.slice(start, stop - start)


_FACTS = ["_cdc_id", "_cdc_timestamp", "_cdc_token", "_cdc_seq", "_cdc_op", _PENDING]


def _facts(rows: pa.RecordBatch) -> pa.RecordBatch:
    """What tells whether a row is another one."""
    return rows.select(_FACTS)


def _same(before: Sequence[pa.RecordBatch], after: Sequence[pa.Table]) -> bool:
    """Whether the rows are those that were there."""
    if not before or len(after) != 1:
        return not before and not after
    old, now = pa.Table.from_batches(before), after[0].select(_FACTS)
    return bool(old.num_rows == now.num_rows and now.cast(old.schema).equals(old))
