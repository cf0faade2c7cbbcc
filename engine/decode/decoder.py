"""Change events to record batches: one batch per collection, in stream order.

The vector of cursors takes all rows; those that it flags go through the driver's decoder, alone, and come out
in the same columns at the same places. Bytes that neither takes are dead letters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from msgspec import Struct

from engine.core.schema import CollectionSchema, Field
from engine.decode import rowwise
from engine.decode.cursor import Bools, Ints, Part, View, padded
from engine.decode.document import Builder, DocumentScanner, Rescue, Tree, observe, values_json
from engine.decode.event import Envelopes, EventScanner
from engine.decode.schema import METADATA_COLUMNS, Observed, SchemaOptions, arrow_type, settle
from engine.rawbson.offsets import Offsets

Namespace = tuple[str, str]


class Schemas(Protocol):
    """Where schemas come from; asking for growth may wait for the state store."""

    def get(self, database: str, collection: str) -> CollectionSchema:
        """The collection's schema as it stands."""

    def grow(self, database: str, collection: str, fields: tuple[Field, ...]) -> CollectionSchema:
        """The schema with these fields, now kept."""


class DecodedBatch(Struct):
    """Rows of one collection. Columns that no row has a value for are left out."""

    database: str
    collection: str
    schema_version: int
    batch: pa.RecordBatch


class Decoded(Struct):
    """What came of some events; ``dead_letters`` holds the bytes of those that no decoder takes."""

    batches: list[DecodedBatch]
    dead_letters: list[bytes]


class _Group:
    """The rows of one namespace while they are decoded.

    Attributes:
        rows: their numbers among the events; None for all.
        slow: row number and event of each that the driver decoded.
    """

    def __init__(self, namespace: Namespace, rows: Ints | None, count: int) -> None:
        self.namespace = namespace
        self.rows = rows
        self.count = count if rows is None else len(rows)
        self.tree: Tree | None = None
        self.slow: list[tuple[int, dict[str, Any]]] = []

    def row_numbers(self) -> Ints:
        return np.arange(self.count, dtype=np.int64) if self.rows is None else self.rows


class Decoder:
    """Decodes the events of one stream; keeps the headers that it has met.

    Args:
        schemas: the collections' schemas.
        default_namespace: for events that have none of their own.
    """

    def __init__(self, schemas: Schemas, options: SchemaOptions, default_namespace: Namespace = ("", "")) -> None:
        self._schemas = schemas
        self._options = options
        self._default = default_namespace
        self._events = EventScanner()
        self._scanners: dict[Namespace, DocumentScanner] = {}

    def decode(self, data: bytes, offsets: Offsets) -> Decoded:
        """Decode the events that begin at ``offsets[:-1]``; the last offset is where the last one ends."""
        count = len(offsets) - 1
        view = View(padded(data, int(offsets[-1])))
        starts = offsets[:-1]
        ends = np.clip(starts + view.int32[starts], starts, offsets[1:])
        odd = np.zeros(count, bool)

        def flag(rows: Ints) -> None:
            odd[rows] = True

        envelopes = self._events.scan(view, starts, ends, flag)
        metadata = envelopes.columns()
        groups = {namespace: _Group(namespace, rows, count) for namespace, rows in envelopes.namespaces().items()}
        for group in groups.values():
            self._scan(view, envelopes, group, odd)
        dead = self._decode_slowly(data, offsets, odd, groups)
        batches = [
            self._finish(view, metadata, group, odd)
            for group in groups.values()
            if group.slow or not odd[group.row_numbers()].all()
        ]
        return Decoded(batches, dead)

    def _scan(self, view: View, envelopes: Envelopes, group: _Group, odd: Bools) -> None:
        at, stop, rows = envelopes.documents()
        if group.rows is not None:
            rows = np.arange(envelopes.count, dtype=np.int64) if rows is None else rows
            local = np.full(envelopes.count, -1, np.int64)
            local[group.rows] = np.arange(group.count)
            mine = local[rows] >= 0
            at, stop, rows = at[mine], stop[mine], local[rows[mine]]
        numbers = group.row_numbers()

        def flag(local_rows: Ints) -> None:
            odd[numbers[local_rows]] = True

        schema = self._schemas.get(*self._named(group.namespace))
        scanner = self._scanners.setdefault(group.namespace, DocumentScanner(self._options))
        group.tree = scanner.scan(view, at, stop, rows, group.count, schema.fields, flag)

    def _named(self, namespace: Namespace) -> Namespace:
        return namespace[0] or self._default[0], namespace[1] or self._default[1]

    def _decode_slowly(
        self, data: bytes, offsets: Offsets, odd: Bools, groups: dict[Namespace, _Group]
    ) -> list[bytes]:
        dead = []
        for row in np.flatnonzero(odd).tolist():
            raw = data[offsets[row] : offsets[row + 1]]
            size = int.from_bytes(raw[:4], "little", signed=True)
            event = rowwise.decode_event(raw[:size]) if 5 <= size <= len(raw) else None
            if event is None:
                dead.append(raw)
                continue
            namespace = rowwise.namespace_of(event)
            group = groups.setdefault(namespace, _Group(namespace, np.zeros(0, np.int64), 0))
            group.slow.append((row, event))
        return dead

    def _finish(self, view: View, metadata: dict[str, pa.Array], group: _Group, odd: Bools) -> DecodedBatch:
        """Settle the types of new fields, build the columns, and put the two ways' rows together."""
        database, collection = self._named(group.namespace)
        documents = [rowwise.document_of(event) for _, event in group.slow]
        schema = self._grown(view, group, documents)
        fast, fast_rows = self._fast_columns(view, metadata, group, schema, odd)
        slow = _slow_columns(group, documents, schema)
        count = len(fast_rows) + len(group.slow)
        arrays = _merged(fast, fast_rows, slow, np.array([row for row, _ in group.slow], np.int64))
        arrays["_cdc_database"] = pa.repeat(pa.scalar(database), count)
        arrays["_cdc_collection"] = pa.repeat(pa.scalar(collection), count)
        names = [*METADATA_COLUMNS, *(field.name for field in schema.fields)]
        present = [name for name in names if name in arrays]
        batch = pa.RecordBatch.from_arrays([arrays[name] for name in present], names=present)
        return DecodedBatch(database, collection, schema.version, batch)

    def _grown(self, view: View, group: _Group, documents: Sequence[dict[str, Any] | None]) -> CollectionSchema:
        namespace = self._named(group.namespace)
        schema = self._schemas.get(*namespace)
        seen: dict[str, Observed] = observe(view, group.tree) if group.tree else {}
        for document in documents:
            rowwise.observe(document or {}, seen)
        fields = settle(seen, self._options)
        if _is_known(fields, schema.fields):
            return schema
        return self._schemas.grow(*namespace, fields)

    def _fast_columns(
        self, view: View, metadata: dict[str, pa.Array], group: _Group, schema: CollectionSchema, odd: Bools
    ) -> tuple[dict[str, pa.Array], Ints]:
        """The columns of the rows that are not odd, and their numbers."""
        if group.tree is None:
            return {}, np.zeros(0, np.int64)
        builder = Builder(view)
        arrays = builder.columns(group.tree, schema.fields)
        own = metadata
        if group.rows is not None:
            numbers = pa.array(group.rows)
            own = {name: array.take(numbers) for name, array in metadata.items()}
        arrays |= {name: array for name, array in own.items() if array.null_count < len(array)}
        if builder.rescued:
            arrays["_cdc_rescued"] = _rescued_column(view, builder.rescued, group.count)
        rows = group.row_numbers()
        fine = ~odd[rows]
        if not fine.all():
            keep = pa.array(fine)
            arrays = {name: array.filter(keep) for name, array in arrays.items()}
            rows = rows[fine]
        return arrays, rows


def _is_known(proposed: Sequence[Field], known: Sequence[Field]) -> bool:
    """Whether a schema with ``known`` fields would not grow by the proposed ones."""
    from engine.core.schema import grow

    schema = CollectionSchema(1, tuple(known))
    return grow(schema, tuple(proposed)) is schema


def _rescued_column(view: View, rescued: Sequence[Rescue], count: int) -> pa.Array:
    members: dict[int, dict[str, str]] = {}
    for path, kind, part in rescued:
        for row, text in zip(_rows(part, count), values_json(view.data, kind, part), strict=True):
            members.setdefault(row, {})[path] = text
    texts: list[str | None] = [None] * count
    for row, paths in members.items():
        texts[row] = rowwise.object_json(paths)
    return pa.array(texts, pa.string())


def _rows(part: Part, count: int) -> Sequence[int]:
    return range(count) if part.rows is None else part.rows.tolist()


def _slow_columns(
    group: _Group, documents: Sequence[dict[str, Any] | None], schema: CollectionSchema
) -> dict[str, pa.Array]:
    """The columns of the rows that the driver decoded."""
    if not group.slow:
        return {}
    arrays, rescued = rowwise.columns(documents, schema.fields)
    envelopes = [rowwise.envelope(event) for _, event in group.slow]
    for envelope, lost in zip(envelopes, rescued, strict=True):
        if lost:
            envelope["_cdc_rescued"] = rowwise.object_json(lost)
    for name, type_ in METADATA_COLUMNS.items():
        if any(name in envelope for envelope in envelopes):
            arrays[name] = pa.array([envelope.get(name) for envelope in envelopes], type_)
    return arrays


def _merged(
    fast: dict[str, pa.Array], fast_rows: Ints, slow: dict[str, pa.Array], slow_rows: Ints
) -> dict[str, pa.Array]:
    """Both ways' columns as one, in the order of the events."""
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


__all__ = ["Decoded", "DecodedBatch", "Decoder", "Schemas", "arrow_type"]
