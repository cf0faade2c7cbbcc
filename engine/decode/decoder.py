"""Change events and documents to record batches: one batch per collection, in their original order.

The vector of cursors takes all rows; only those that it flags are decoded row by row, into the same columns at the
same places. Bytes that neither can decode are dead letters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from msgspec import Struct

from engine.core.messages import Rescued
from engine.core.naming import is_temporary
from engine.core.position import split_time
from engine.core.schema import CollectionSchema, DataType, Field
from engine.decode import rowwise
from engine.decode.columns import primitive, scattered, texts
from engine.decode.cursor import Bools, Flag, Ints, Level, Part, View, padded
from engine.decode.document import Builder, DocumentScanner, Tree, checked_json, observe
from engine.decode.event import Envelopes, EventScanner, object_id_keys
from engine.decode.identity import merge_keys
from engine.decode.schema import METADATA_COLUMNS, MILLISECONDS, RAW_COLUMN, Observed, SchemaOptions, Settler
from engine.errors import FatalError
from engine.rawbson import elements as raw
from engine.rawbson.offsets import Offsets

Namespace = tuple[str, str]
Columns = dict[str, pa.Array]


class Schemas(Protocol):
    """Where schemas come from; a request for new fields may wait for the state store."""

    def get(self, database: str, collection: str) -> CollectionSchema:
        """The collection's current schema."""

    def grow(self, database: str, collection: str, fields: tuple[Field, ...]) -> CollectionSchema:
        """The schema with these fields, up to ``schema.max_fields``, once stored."""


class DecodedBatch(Struct):
    """Rows of one collection, without the columns in which no row has a value.

    Attributes:
        rescued: how many values are in ``_cdc_rescued``, by column, and in one item for those without a column.
    """

    database: str
    collection: str
    schema_version: int
    batch: pa.RecordBatch
    rescued: tuple[Rescued, ...] = ()


class Renamed(NamedTuple):
    """A collection was renamed, at this cluster time."""

    source: Namespace
    target: Namespace
    time: int


class Decoded(Struct):
    """Decoded events; ``dead_letters`` holds the bytes of those that could not be decoded."""

    batches: list[DecodedBatch]
    dead_letters: list[bytes]
    renames: list[Renamed] = []


class _SlowRow(NamedTuple):
    """A row that is decoded row by row: its number, where it lands, its metadata columns, and its document."""

    number: int
    namespace: Namespace
    metadata: dict[str, Any]
    document: rowwise.Value | None


class _Group:
    """The rows of one namespace while they are decoded.

    Attributes:
        rows: their numbers among all rows; None for all.
        tree, scan: what was found in the fast rows' documents, and how to scan them again with another schema.
        rescued: what was rescued, by the column's path; an empty path for values without a column.
    """

    def __init__(self, namespace: Namespace, rows: Ints | None, count: int) -> None:
        self.namespace = namespace
        self.rows = rows
        self.count = count if rows is None else len(rows)
        self.tree: Tree | None = None
        self.scan: Callable[[Sequence[Field]], Tree] | None = None
        self.slow: list[_SlowRow] = []
        self.rescued: dict[str | None, Rescued] = {}

    def row_numbers(self) -> Ints:
        return np.arange(self.count, dtype=np.int64) if self.rows is None else self.rows


class _Reply:
    """The bytes that are decoded together, the rows that the cursors could not handle, and what else was found."""

    def __init__(self, data: bytes, offsets: Offsets) -> None:
        self.data = data
        self.offsets = offsets
        self.count = len(offsets) - 1
        self.view = View(padded(data, int(offsets[-1])))
        self.starts = offsets[:-1]
        self.ends = np.clip(self.starts + self.view.int32[self.starts], self.starts, offsets[1:])
        self.odd: Bools = np.zeros(self.count, bool)
        self.dead: list[bytes] = []
        self.renames: list[Renamed] = []

    def flag(self, rows: Ints) -> None:
        self.odd[rows] = True

    def bytes_of(self, row: int) -> bytes:
        """One row's document, or all bytes up to the next one if its size is implausible."""
        slot = self.data[self.offsets[row] : self.offsets[row + 1]]
        size = int.from_bytes(slot[:4], "little", signed=True)
        return slot[:size] if 5 <= size <= len(slot) else slot


# Decodes one row by itself; None for a dead letter.
_Slowly = Callable[[_Reply, int], _SlowRow | None]


class Decoder:
    """Decodes the events of one stream, or the documents of one split; remembers the headers it has seen.

    Args:
        schemas: the collections' schemas.
        default_namespace: for events without a namespace, and for documents.
        covers: whether a collection, given by database and name, belongs to the stream.
    """

    def __init__(
        self,
        schemas: Schemas,
        options: SchemaOptions,
        default_namespace: Namespace = ("", ""),
        covers: Callable[[str, str], bool] = lambda *_: True,
    ) -> None:
        self._schemas = schemas
        self._options = options
        self._default = default_namespace
        self._covers = covers
        self._events = EventScanner()
        self._scanners: dict[Namespace, DocumentScanner] = {}
        self._settlers: dict[str, Settler] = {}

    def decode(self, data: bytes, offsets: Offsets) -> Decoded:
        """Decode the events that start at ``offsets[:-1]``; the last offset is where the last one ends."""
        reply = _Reply(data, offsets)
        metadata, groups = self._scan_all(reply)
        return self._decoded(reply, metadata, groups, self._slow_event)

    def settle(self, data: bytes, offsets: Offsets) -> None:
        """Let the schemas grow by the fields of these events, without decoding them yet."""
        reply = _Reply(data, offsets)
        for group in self._scan_all(reply)[1]:
            self._grown(reply, group)

    def decode_documents(self, data: bytes, offsets: Offsets, read_at: int = 0) -> Decoded:
        """Decode documents read from a collection.

        Args:
            read_at: a cluster time before they were read, as seconds << 32 | increment.
        """
        reply = _Reply(data, offsets)
        read_at_ms = split_time(read_at)[0] * 1000
        group = _Group(("", ""), None, reply.count)
        tree = self._scan(group, reply.view, reply.starts, reply.ends, None, reply.flag)
        metadata = {
            "_cdc_op": pa.repeat("read", reply.count),
            "_cdc_cluster_time": primitive(np.full(reply.count, read_at_ms, np.int64), None, MILLISECONDS),
            "_cdc_timestamp": primitive(np.full(reply.count, read_at, np.int64), None, pa.int64()),
            "_cdc_key": _document_keys(reply, tree),
            "_cdc_id": merge_keys(reply.view, tree.level.columns.get(b"_id", {}), reply.count, reply.flag),
            "_cdc_has_document": pa.repeat(pa.scalar(True), reply.count),
        }
        slow = partial(
            self._slow_document, {"_cdc_op": "read", "_cdc_cluster_time": read_at_ms, "_cdc_timestamp": read_at}
        )
        for row in np.flatnonzero(reply.odd).tolist():
            if (alone := slow(reply, row)) is not None:
                group.slow.append(alone)
        return self._decoded(reply, metadata, [group], slow)

    def propose(self, collection: str, data: bytes, offsets: Offsets) -> tuple[Field, ...]:
        """The fields of these documents of a collection, with the types that follow from them."""
        if len(offsets) < 2:
            return ()
        reply = _Reply(data, offsets)
        scanner = DocumentScanner(self._options)
        tree = scanner.scan(reply.view, reply.starts, reply.ends, None, reply.count, (), reply.flag)
        fine = ~reply.odd
        seen = observe(reply.view, tree, None if fine.all() else fine)
        return Settler(self._options, collection).proposal(seen, CollectionSchema())

    # --- scanning ----------------------------------------------------------------------------------------

    def _scan_all(self, reply: _Reply) -> tuple[Columns, list[_Group]]:
        """The metadata columns of all events, and the events of each namespace."""
        envelopes = self._events.scan(reply.view, reply.starts, reply.ends, reply.flag)
        metadata = envelopes.columns()
        spaces = self._spaces(reply, envelopes)
        groups = {namespace: _Group(namespace, rows, reply.count) for namespace, rows in spaces.items()}
        for group in groups.values():
            self._scan_events(reply, envelopes, group)
        for row in np.flatnonzero(reply.odd).tolist():
            if (alone := self._slow_event(reply, row)) is not None:
                of = alone.namespace
                groups.setdefault(of, _Group(of, np.zeros(0, np.int64), 0)).slow.append(alone)
        return metadata, list(groups.values())

    def _slow_event(self, reply: _Reply, row: int) -> _SlowRow | None:
        """An event that is decoded row by row; None for a dead letter."""
        event = rowwise.read_event(reply.bytes_of(row))
        if event is None:
            reply.dead.append(reply.bytes_of(row))
            return None
        place, found = self._place(reply, event)
        return _SlowRow(row, self._named(place), found, rowwise.document_of(event))

    def _slow_document(self, metadata: dict[str, Any], reply: _Reply, row: int) -> _SlowRow | None:
        """A document that is decoded row by row; None for a dead letter."""
        document = reply.bytes_of(row)
        if not rowwise.is_document(document):
            reply.dead.append(document)
            return None
        value = rowwise.whole(document)
        found = metadata | rowwise.keys_of(value) | {"_cdc_has_document": True}
        return _SlowRow(row, self._default, found, value)

    def _spaces(self, reply: _Reply, envelopes: Envelopes) -> dict[Namespace, Ints | None]:
        """The rows of each namespace. Events without one, such as invalidates, are among those of the stream.

        As a group of their own they would land out of order in the collection's object.
        """
        found: dict[Namespace, Ints | None] = {}
        for namespace, rows in self._without_renames(reply, envelopes).items():
            known = found.get(name := self._named(namespace))
            assert known is None or rows is not None, "of several namespaces, each has some of the rows"
            found[name] = rows if known is None or rows is None else np.union1d(known, rows)
        return found

    def _without_renames(self, reply: _Reply, envelopes: Envelopes) -> dict[Namespace, Ints | None]:
        """The rows of each namespace, without renames, which are few and are decoded row by row."""
        spaces, renamed = envelopes.namespaces(), envelopes.renames()
        if not len(renamed):
            return spaces
        reply.flag(renamed)
        every = np.arange(reply.count, dtype=np.int64)
        left = {each: np.setdiff1d(every if rows is None else rows, renamed) for each, rows in spaces.items()}
        return {each: rows for each, rows in left.items() if len(rows)}

    def _place(self, reply: _Reply, event: rowwise.Event) -> tuple[Namespace, dict[str, Any]]:
        """The collection under which an event lands, and its metadata columns.

        A rename lands under its source or, if the stream does not have that collection, under its target.
        """
        own, found = rowwise.namespace_of(event), rowwise.envelope(event)
        if found.get("_cdc_op") != "rename" or not (target := rowwise.namespace_of(event, "to"))[1]:
            return own, found
        reply.renames.append(Renamed(own, target, found["_cdc_timestamp"] or 0))
        has_source = self._covers(*own) and not is_temporary(own[1])
        if has_source or not self._covers(*target):
            return own, found
        return target, rowwise.envelope(event, elsewhere=True)

    def _scan_events(self, reply: _Reply, envelopes: Envelopes, group: _Group) -> None:
        at, stop, rows = envelopes.documents()
        if group.rows is not None:
            rows = np.arange(envelopes.count, dtype=np.int64) if rows is None else rows
            local = np.full(envelopes.count, -1, np.int64)
            local[group.rows] = np.arange(group.count)
            mine = local[rows] >= 0
            at, stop, rows = at[mine], stop[mine], local[rows[mine]]
        numbers = group.row_numbers()

        def flag(local_rows: Ints) -> None:
            reply.odd[numbers[local_rows]] = True

        self._scan(group, reply.view, at, stop, rows, flag)

    def _scan(self, group: _Group, view: View, at: Ints, stop: Ints, rows: Ints | None, odd: Flag) -> Tree:
        scanner = self._scanners.setdefault(self._home(group.namespace), DocumentScanner(self._options))
        count, columns = group.count, self._options.columns

        def scan(fields: Sequence[Field]) -> Tree:  # without the group: a cycle would keep the reply's bytes alive
            if not columns:
                return Tree(Level(count))
            return scanner.scan(view, at, stop, rows, count, fields, odd)

        group.scan = scan
        group.tree = scan(self._schemas.get(*self._home(group.namespace)).fields)
        return group.tree

    def _named(self, namespace: Namespace) -> Namespace:
        return namespace[0] or self._default[0], namespace[1] or self._default[1]

    def _home(self, namespace: Namespace) -> Namespace:
        """The collection whose schema and directory the rows get; temporary collections have none of their own."""
        database, collection = self._named(namespace)
        return database, "" if is_temporary(collection) else collection

    # --- columns -----------------------------------------------------------------------------------------

    def _decoded(self, reply: _Reply, metadata: Columns, groups: Sequence[_Group], slow: _Slowly) -> Decoded:
        if self._options.raw:
            metadata[RAW_COLUMN] = texts(reply.view, reply.starts, reply.ends, None, reply.count, pa.binary())
        batches = [self._finish(reply, metadata, group, slow) for group in groups]
        return Decoded([each for each in batches if each is not None], reply.dead, reply.renames)

    def _finish(self, reply: _Reply, metadata: Columns, group: _Group, slow_row: _Slowly) -> DecodedBatch | None:
        """Settle the types of new fields, build the columns, and merge the fast and the slow rows."""
        database, collection = self._home(group.namespace)
        before = self._schemas.get(database, collection)
        schema = self._grown(reply, group)
        if schema is not before and group.scan and group.tree and group.tree.has_loose():
            known = reply.odd.copy()
            group.tree = group.scan(schema.fields)  # a name that was too rare for a part has a column now,
            for row in np.flatnonzero(reply.odd & ~known).tolist():  # and its values are looked into
                if (alone := slow_row(reply, row)) is not None:
                    group.slow.append(alone)
        fast, fast_rows = self._fast_columns(reply, metadata, group, schema)
        slow = self._slow_columns(reply, group, schema)
        count = len(fast_rows) + len(group.slow)
        if not count:
            return None
        arrays = _merged(fast, fast_rows, slow, np.array([row.number for row in group.slow], np.int64))
        shown = self._named(group.namespace)
        arrays["_cdc_database"] = pa.repeat(pa.scalar(shown[0]), count)
        arrays["_cdc_collection"] = pa.repeat(pa.scalar(shown[1]), count)
        names = [*METADATA_COLUMNS, *(field.column_name for field in schema.fields)]
        present = [name for name in names if name in arrays]
        batch = pa.RecordBatch.from_arrays([arrays[name] for name in present], names=present)
        return DecodedBatch(database, collection, schema.version, batch, tuple(group.rescued.values()))

    def _grown(self, reply: _Reply, group: _Group) -> CollectionSchema:
        """The collection's schema, with the new fields of these rows."""
        database, collection = self._home(group.namespace)
        schema = self._schemas.get(database, collection)
        seen: dict[str, Observed] = {}
        if group.tree is not None:
            fine = ~reply.odd[group.row_numbers()]
            seen = observe(reply.view, group.tree, None if fine.all() else fine)
        for row in group.slow:
            if row.document is not None and self._options.columns:
                rowwise.observe(row.document, seen)
        settler = self._settlers.setdefault(collection, Settler(self._options, collection))
        fields = settler.proposal(seen, schema)
        return self._schemas.grow(database, collection, fields) if fields else schema

    def _fast_columns(
        self, reply: _Reply, metadata: Columns, group: _Group, schema: CollectionSchema
    ) -> tuple[Columns, Ints]:
        """The columns of the rows that the cursors decoded, and their row numbers."""
        if group.tree is None:
            return {}, np.zeros(0, np.int64)
        builder = Builder(reply.view)
        arrays = builder.columns(group.tree, schema.fields)
        if builder.rescued:
            arrays["_cdc_rescued"] = builder.rescued_column(group.count)
        rows = group.row_numbers()
        fine = ~reply.odd[rows]
        bad = sorted({row for row in builder.malformed if fine[row]})
        reply.dead += [reply.bytes_of(int(rows[row])) for row in bad]
        fine[bad] = False
        for path, kind, part, column in builder.rescued:
            self._note_rescued(group, path, kind, column, int(np.count_nonzero(fine[_rows_of(part)])))
        own = metadata
        if group.rows is not None:
            numbers = pa.array(group.rows)
            own = {name: array.take(numbers) for name, array in metadata.items()}
        arrays |= {name: array for name, array in own.items() if array.null_count < len(array)}
        if not fine.all():
            keep = pa.array(fine)
            arrays = {name: array.filter(keep) for name, array in arrays.items()}
            rows = rows[fine]
        return arrays, rows

    def _slow_columns(self, reply: _Reply, group: _Group, schema: CollectionSchema) -> Columns:
        """The columns of the rows that were decoded row by row."""
        if not group.slow:
            return {}
        arrays, lost = rowwise.columns([row.document for row in group.slow], schema.fields)
        found = [row.metadata for row in group.slow]
        for row, metadata, rescued in zip(group.slow, found, lost, strict=True):
            if rescued.values:
                metadata["_cdc_rescued"] = rowwise.object_json(rescued.values)
            for path, kind, column in rescued.mismatched:
                self._note_rescued(group, path, kind, column, 1)
            self._note_rescued(group, "", 0, None, len(rescued.values) - len(rescued.mismatched))
            if self._options.raw:
                metadata[RAW_COLUMN] = reply.bytes_of(row.number)
        for name, type_ in METADATA_COLUMNS.items():
            if any(name in metadata for metadata in found):
                arrays[name] = pa.array([metadata.get(name) for metadata in found], type_)
        return arrays

    def _note_rescued(self, group: _Group, path: str, kind: int, column: DataType | None, times: int) -> None:
        """Count values that have no column, or that their column cannot hold.

        Raises:
            FatalError: there is a column, and ``schema.on_mismatch`` is ``fail``.
        """
        database, collection = self._home(group.namespace)
        if column is not None and self._options.on_mismatch == "fail":
            cause = f"field {path!r} has a {raw.NAMES[kind]} that its column ({column.kind}) cannot hold exactly"
            remedy = (
                'Set schema.on_mismatch = "rescue", which keeps such values in _cdc_rescued, or give the field a '
                f'type that holds them all, by "{collection}.{path}" in schema.overrides, and a new sink.url.'
            )
            raise FatalError(f"decode {database}.{collection}", cause, remedy)
        if not times:
            return
        of, type_, found = (None, None, None) if column is None else (path, column.kind, raw.NAMES[kind])
        before = group.rescued[of].values if of in group.rescued else 0
        group.rescued[of] = Rescued(database, collection, before + times, of, type_, found)


def _rows_of(part: Part) -> Ints | slice:
    return slice(None) if part.rows is None else part.rows


def _document_keys(reply: _Reply, tree: Tree) -> pa.Array:
    """``{"_id": ...}`` of each document; null without an ``_id``."""
    kinds = tree.level.columns.get(b"_id", {})
    if kinds.keys() == {raw.OBJECT_ID}:
        ids = kinds[raw.OBJECT_ID]
        return scattered(object_id_keys(ids), ids.rows, reply.count)
    keys: list[str | None] = [None] * reply.count
    for kind, part in kinds.items():
        rows = range(reply.count) if part.rows is None else part.rows.tolist()
        for row, text in zip(rows, checked_json(reply.view, kind, part, reply.flag), strict=True):
            keys[row] = f'{{"_id":{text}}}'
    return pa.array(keys, pa.string())


def _merged(fast: Columns, fast_rows: Ints, slow: Columns, slow_rows: Ints) -> Columns:
    """The fast and the slow rows' columns as one, in row order."""
    if not len(slow_rows):
        return fast
    order = pa.array(np.argsort(np.concatenate([fast_rows, slow_rows]), kind="stable"))
    merged = {}
    for name in fast.keys() | slow.keys():
        type_ = (fast if name in fast else slow)[name].type
        halves = [
            arrays[name] if name in arrays else pa.nulls(len(rows), type_)
            for arrays, rows in ((fast, fast_rows), (slow, slow_rows))
        ]
        merged[name] = pa.concat_arrays(halves).take(order)
    return merged


__all__ = ["Decoded", "DecodedBatch", "Decoder", "Schemas"]
