"""The envelope of change events: a document whose shape we know.

It is scanned by the same cursors as any document; here its fields become the metadata columns, and it is told
where the document inside each event lies.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from engine.decode import cursor
from engine.decode.columns import MILLISECONDS, fixed_texts, hex_digits, primitive, scattered, texts
from engine.decode.cursor import Flag, Ints, Level, Part, Plan, View, scan_documents
from engine.decode.document import values_json
from engine.decode.json import member_name

_TIMESTAMP_PARTS = np.dtype([("increment", "<u4"), ("seconds", "<u4")])
# The fields that have a column (or two) of their own, with the type that makes them so.
_OWN_COLUMN = {
    (b"_id", cursor.DOCUMENT),
    (b"operationType", cursor.STRING),
    (b"clusterTime", cursor.TIMESTAMP),
    (b"wallTime", cursor.DATE),
    (b"ns", cursor.DOCUMENT),
    (b"fullDocument", cursor.DOCUMENT),
    (b"documentKey", cursor.DOCUMENT),
    (b"updateDescription", cursor.DOCUMENT),
    (b"fullDocumentBeforeChange", cursor.DOCUMENT),
    (b"lsid", cursor.DOCUMENT),
    (b"txnNumber", cursor.INT64),
}


class EventScanner:
    """Scans envelopes and remembers their headers; one for each stream."""

    def __init__(self) -> None:
        self._plan = Plan()

    def scan(self, view: View, starts: Ints, ends: Ints, odd: Flag) -> Envelopes:
        """The envelopes of events that lie in ``starts`` to ``ends``."""
        level = scan_documents(view, starts, ends, None, len(starts), self._plan, odd)
        return Envelopes(view, level, self._plan, odd)


class Envelopes:
    """The scanned envelopes of some events."""

    def __init__(self, view: View, level: Level, plan: Plan, odd: Flag) -> None:
        self._view = view
        self._level = level
        self._plan = plan
        self._odd = odd
        self.count = level.count

    def _part(self, name: bytes, kind: int) -> Part | None:
        return self._level.columns.get(name, {}).get(kind)

    def documents(self) -> tuple[Ints, Ints, Ints | None]:
        """Where the document of each event lies, and the rows that have one (None: all).

        That is ``fullDocument``, or the key where there is none, so that the key's fields fill their columns.
        """
        full = self._part(b"fullDocument", cursor.DOCUMENT)
        key = self._part(b"documentKey", cursor.DOCUMENT)
        if full is not None and full.rows is None:
            return full.at, full.stop, None
        at, stop = np.full(self.count, -1, np.int64), np.zeros(self.count, np.int64)
        for part in (key, full):
            if part is not None:
                rows = slice(None) if part.rows is None else part.rows
                at[rows], stop[rows] = part.at, part.stop
        rows = np.flatnonzero(at >= 0)
        return at[rows], stop[rows], rows

    def namespaces(self) -> dict[tuple[str, str], Ints | None]:
        """The rows of each (database, collection), None for all rows; empty names where an event has none."""
        part = self._part(b"ns", cursor.DOCUMENT)
        if part is None:
            return {("", ""): None}
        names = scan_documents(
            self._view, part.at, part.stop, None, len(part), self._plan.child(b"ns"), lambda rows: None
        )
        groups = _equal_groups(self._view, part)
        rows_of = np.arange(self.count, dtype=np.int64) if part.rows is None else part.rows
        found: dict[tuple[str, str], Ints | None] = {}
        for members in groups:
            first = int(members[0])
            namespace = _text(self._view, names, b"db", first), _text(self._view, names, b"coll", first)
            found[namespace] = rows_of[members]
        if len(part) < self.count:
            bare = np.ones(self.count, bool)
            bare[rows_of] = False
            rows = np.flatnonzero(bare)
            known = found.get(("", ""))
            found["", ""] = rows if known is None else np.union1d(known, rows)
        if len(found) == 1:
            return {next(iter(found)): None}
        return found

    def columns(self) -> dict[str, pa.Array]:
        """The metadata columns that have values, but for the namespace's and ``_cdc_rescued``."""
        view, count = self._view, self.count
        arrays: dict[str, pa.Array] = {}
        if (part := self._part(b"operationType", cursor.STRING)) is not None:
            arrays["_cdc_op"] = texts(view, part.at + 4, part.stop - 1, part.rows, count, pa.string())
        if (part := self._part(b"_id", cursor.DOCUMENT)) is not None:
            arrays["_cdc_token"] = self._tokens(part)
        if (part := self._part(b"clusterTime", cursor.TIMESTAMP)) is not None:
            arrays["_cdc_cluster_time"] = self._cluster_times(part)
        if (part := self._part(b"wallTime", cursor.DATE)) is not None:
            assert part.payload is not None
            arrays["_cdc_wall_time"] = scattered(primitive(part.payload, None, MILLISECONDS), part.rows, count)
        if (part := self._part(b"documentKey", cursor.DOCUMENT)) is not None:
            arrays["_cdc_key"] = self._keys(part)
        for column, name in (("_cdc_update", b"updateDescription"), ("_cdc_before", b"fullDocumentBeforeChange")):
            if (part := self._part(name, cursor.DOCUMENT)) is not None:
                arrays[column] = self._json(part)
        arrays |= self._objects("_cdc_txn", [(n, k) for n, k in _OWN_COLUMN if n in (b"lsid", b"txnNumber")])
        extra = [
            (name, kind)
            for name, kinds in self._level.columns.items()
            for kind in kinds
            if (name, kind) not in _OWN_COLUMN and kind not in (cursor.NULL, cursor.UNDEFINED)
        ]
        return arrays | self._objects("_cdc_extra", extra)

    def _tokens(self, part: Part) -> pa.Array:
        level = scan_documents(
            self._view, part.at, part.stop, part.rows, self.count, self._plan.child(b"_id"), self._odd
        )
        data = level.columns.get(b"_data", {}).get(cursor.STRING)
        if data is None or len(data) < len(part) or len(level.columns) > 1:
            self._odd(np.arange(self.count, dtype=np.int64) if part.rows is None else part.rows)
        if data is None:
            return pa.nulls(self.count, pa.string())
        return texts(self._view, data.at + 4, data.stop - 1, data.rows, self.count, pa.string())

    def _cluster_times(self, part: Part) -> pa.Array:
        assert part.payload is not None
        seconds = part.payload.view(_TIMESTAMP_PARTS)["seconds"].astype(np.int64)
        return scattered(primitive(seconds * 1000, None, MILLISECONDS), part.rows, self.count)

    def _keys(self, part: Part) -> pa.Array:
        """``documentKey`` as JSON: by a template where all are a lone ObjectId, else one by one."""
        level = scan_documents(
            self._view, part.at, part.stop, None, len(part), self._plan.child(b"documentKey"), self._odd
        )
        ids = level.columns.get(b"_id", {}).get(cursor.OBJECT_ID)
        if len(level.columns) != 1 or ids is None or ids.payload is None or ids.rows is not None:
            return self._json(part)
        head, tail = b'{"_id":{"$oid":"', b'"}}'
        characters = np.empty((len(ids), len(head) + 24 + len(tail)), np.uint8)
        characters[:, : len(head)] = np.frombuffer(head, np.uint8)
        characters[:, len(head) : len(head) + 24] = hex_digits(ids.payload, 12)
        characters[:, len(head) + 24 :] = np.frombuffer(tail, np.uint8)
        return fixed_texts(characters, part.rows, self.count)

    def _json(self, part: Part) -> pa.Array:
        values = pa.array(values_json(self._view.data, cursor.DOCUMENT, part), pa.string())
        return scattered(values, part.rows, self.count)

    def _objects(self, column: str, fields: list[tuple[bytes, int]]) -> dict[str, pa.Array]:
        """A column of JSON objects that hold several fields of the envelope; empty when no row has any."""
        members: dict[int, list[str]] = {}
        for name, kind in sorted(fields):
            if (part := self._part(name, kind)) is None:
                continue
            rows = range(self.count) if part.rows is None else part.rows.tolist()
            label = member_name(name.decode())
            for row, text in zip(rows, values_json(self._view.data, kind, part), strict=True):
                members.setdefault(row, []).append(f"{label}:{text}")
        if not members:
            return {}
        objects: list[str | None] = [None] * self.count
        for row, parts in members.items():
            objects[row] = "{" + ",".join(parts) + "}"
        return {column: pa.array(objects, pa.string())}


def _equal_groups(view: View, part: Part) -> list[Ints]:
    """The values of a part, grouped by their bytes; each group ascending."""
    groups: list[Ints] = []
    left = np.arange(len(part), dtype=np.int64)
    while len(left):
        at, size = int(part.at[left[0]]), int(part.stop[left[0]] - part.at[left[0]])
        same = part.stop[left] - part.at[left] == size
        first = view.data[at : at + size]
        windows = np.ndarray((len(view.data) - size + 1,), f"V{size}", view.data, strides=(1,))
        places = part.at[left[same]]
        equal = windows[places].view(np.uint8).reshape(len(places), size) == np.frombuffer(first, np.uint8)
        same[same] = equal.all(axis=1)
        groups.append(left[same])
        left = left[~same]
    return groups


def _text(view: View, level: Level, name: bytes, row: int) -> str:
    """The string that a row has in a field; empty when it has none."""
    part = level.columns.get(name, {}).get(cursor.STRING)
    if part is None:
        return ""
    at = row if part.rows is None else int(np.searchsorted(part.rows, row))
    if at >= len(part) or (part.rows is not None and part.rows[at] != row):
        return ""
    return view.data[int(part.at[at]) + 4 : int(part.stop[at]) - 1].decode()
