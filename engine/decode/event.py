"""The envelope of change events: a document of known shape.

It is scanned by the same cursors as any document; its fields become the metadata columns, and the position of the
document inside each event is found.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from engine.core.position import token_time
from engine.decode.columns import fitting_dates, not_utf8, primitive, scattered, strings, texts
from engine.decode.cursor import Flag, Ints, Level, Part, Plan, View, scan_documents
from engine.decode.document import checked_json
from engine.decode.identity import merge_keys, object_id_texts
from engine.decode.json import text_json, utf8
from engine.decode.schema import MILLISECONDS
from engine.rawbson import elements as raw

_TIMESTAMP_PARTS = np.dtype([("increment", "<u4"), ("seconds", "<u4")])
# The fields with a column (or two) of their own, and the type that they must have for it.
_OWN_COLUMN = {
    (b"_id", raw.DOCUMENT),
    (b"operationType", raw.STRING),
    (b"clusterTime", raw.TIMESTAMP),
    (b"wallTime", raw.DATE),
    (b"ns", raw.DOCUMENT),
    (b"fullDocument", raw.DOCUMENT),
    (b"documentKey", raw.DOCUMENT),
    (b"updateDescription", raw.DOCUMENT),
    (b"fullDocumentBeforeChange", raw.DOCUMENT),
    (b"lsid", raw.DOCUMENT),
    (b"txnNumber", raw.INT64),
}
_TRANSACTION = ((b"lsid", raw.DOCUMENT), (b"txnNumber", raw.INT64))


class EventScanner:
    """Scans envelopes and remembers their headers; one per stream."""

    def __init__(self) -> None:
        self._plan = Plan()

    def scan(self, view: View, starts: Ints, ends: Ints, odd: Flag) -> Envelopes:
        """The envelopes of the events between ``starts`` and ``ends``."""
        level = scan_documents(view, starts, ends, None, len(starts), self._plan, odd)
        return Envelopes(view, level, self._plan, odd)


class Envelopes:
    """The scanned envelopes of some events.

    Attributes:
        level: their fields.
    """

    def __init__(self, view: View, level: Level, plan: Plan, odd: Flag) -> None:
        self._view = view
        self.level = level
        self._plan = plan
        self._odd = odd
        self.count = level.count

    def _part(self, name: bytes, kind: int) -> Part | None:
        return self.level.columns.get(name, {}).get(kind)

    def documents(self) -> tuple[Ints, Ints, Ints | None]:
        """The start and end of each event's document, and the rows that have one (None: all).

        That is ``fullDocument``, or else the key, so that the key's fields fill their columns.
        """
        full = self._part(b"fullDocument", raw.DOCUMENT)
        key = self._part(b"documentKey", raw.DOCUMENT)
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
        """The rows of each (database, collection), None for all rows; empty names if an event has none."""
        part = self._part(b"ns", raw.DOCUMENT)
        if part is None:
            return {("", ""): None}
        rows_of = np.arange(self.count, dtype=np.int64) if part.rows is None else part.rows
        plan = self._plan.child(b"ns")
        names = scan_documents(self._view, part.at, part.stop, part.rows, self.count, plan, self._odd)
        found: dict[tuple[str, str], Ints | None] = {}
        for members in _equal_groups(self._view, part):
            row = int(rows_of[members[0]])
            namespace = _text(self._view, names, b"db", row), _text(self._view, names, b"coll", row)
            known = found.get(namespace)
            rows = rows_of[members]
            found[namespace] = rows if known is None else np.union1d(known, rows)
        if len(part) < self.count:
            bare = np.ones(self.count, bool)
            bare[rows_of] = False
            rows = np.flatnonzero(bare)
            known = found.get(("", ""))
            found["", ""] = rows if known is None else np.union1d(known, rows)
        if len(found) == 1:
            return {next(iter(found)): None}
        return found

    def renames(self) -> Ints:
        """The rows of rename events."""
        part = self._part(b"to", raw.DOCUMENT)
        if part is None:
            return np.zeros(0, np.int64)
        return np.arange(self.count, dtype=np.int64) if part.rows is None else part.rows

    def columns(self) -> dict[str, pa.Array]:
        """The metadata columns with values, except the namespace's and ``_cdc_rescued``."""
        count = self.count
        arrays: dict[str, pa.Array] = {}
        if (part := self._part(b"operationType", raw.STRING)) is not None:
            arrays["_cdc_op"] = self._strings(part)
        if (part := self._part(b"_id", raw.DOCUMENT)) is not None:
            arrays["_cdc_token"] = self._tokens(part)
        if (part := self._part(b"clusterTime", raw.TIMESTAMP)) is not None:
            arrays["_cdc_cluster_time"] = self._cluster_times(part)
        arrays["_cdc_timestamp"] = self._timestamps(part, arrays.get("_cdc_token"))
        part, late = self._wall_times()
        if part is not None:
            assert part.payload is not None
            arrays["_cdc_wall_time"] = scattered(primitive(part.payload, None, MILLISECONDS), part.rows, count)
        if (part := self._part(b"documentKey", raw.DOCUMENT)) is not None:
            arrays["_cdc_key"], arrays["_cdc_id"] = self._keys(part)
        arrays["_cdc_has_document"] = self._presence(self._part(b"fullDocument", raw.DOCUMENT))
        for column, name in (("_cdc_update", b"updateDescription"), ("_cdc_before", b"fullDocumentBeforeChange")):
            if (part := self._part(name, raw.DOCUMENT)) is not None:
                arrays[column] = self._json(part)
        kinds_of = self.level.columns
        transaction = [(n, k, kinds_of[n][k]) for n, k in _TRANSACTION if k in kinds_of.get(n, {})]
        arrays |= self._objects("_cdc_txn", transaction)
        extra = [
            (name, kind, part)
            for name, kinds in kinds_of.items()
            for kind, part in kinds.items()
            if (name, kind) not in _OWN_COLUMN and kind not in raw.NOTHING
        ]
        extra += [(b"wallTime", raw.DATE, late)] if late is not None else []
        return arrays | self._objects("_cdc_extra", extra)

    def _tokens(self, part: Part) -> pa.Array:
        level = scan_documents(
            self._view, part.at, part.stop, part.rows, self.count, self._plan.child(b"_id"), self._odd
        )
        data = level.columns.get(b"_data", {}).get(raw.STRING)
        token_shaped = np.zeros(self.count, bool)
        if data is not None:
            token_shaped[slice(None) if data.rows is None else data.rows] = True
        for name, kinds in level.columns.items():
            for kind, other in kinds.items():
                if (name, kind) not in ((b"_data", raw.STRING), (b"_typeBits", raw.BINARY)):
                    token_shaped[slice(None) if other.rows is None else other.rows] = False
        rows = np.arange(self.count, dtype=np.int64) if part.rows is None else part.rows
        self._odd(rows[~token_shaped[rows]])
        return pa.nulls(self.count, pa.string()) if data is None else self._strings(data)

    def _strings(self, part: Part) -> pa.Array:
        array = strings(self._view, part, self.count)
        if (wrong := not_utf8(array)) is not None:
            self._odd(np.flatnonzero(wrong))
            part = part.select(~(wrong if part.rows is None else wrong[part.rows]), self.count)
            array = strings(self._view, part, self.count)
        return array

    def _cluster_times(self, part: Part) -> pa.Array:
        assert part.payload is not None
        seconds = part.payload.view(_TIMESTAMP_PARTS)["seconds"].astype(np.int64)
        return scattered(primitive(seconds * 1000, None, MILLISECONDS), part.rows, self.count)

    def _timestamps(self, part: Part | None, tokens: Any) -> pa.Array:
        """The full cluster times; from the token if a pipeline removed the field."""
        whole = np.zeros(self.count, np.int64)
        missing = np.ones(self.count, bool)
        if part is not None:
            assert part.payload is not None
            rows = slice(None) if part.rows is None else part.rows
            whole[rows], missing[rows] = part.payload.view(np.int64), False
        if not missing.any():
            return primitive(whole, None, pa.int64())
        for row in np.flatnonzero(missing).tolist() if tokens is not None else []:
            whole[row] = token_time(tokens[row].as_py() or "") or 0
        return primitive(whole, whole != 0, pa.int64())

    def _presence(self, part: Part | None) -> pa.Array:
        present = np.zeros(self.count, bool)
        if part is not None:
            present[slice(None) if part.rows is None else part.rows] = True
        return pa.array(present)

    def _keys(self, part: Part) -> tuple[pa.Array, pa.Array]:
        """The keys as JSON, by a template if each is a single ObjectId, and the merge keys of their ``_id``."""
        odd: list[Ints] = []
        plan = self._plan.child(b"documentKey")
        level = scan_documents(self._view, part.at, part.stop, None, len(part), plan, odd.append)
        rows = np.arange(self.count, dtype=np.int64) if part.rows is None else part.rows

        def odd_key(local_rows: Ints) -> None:
            self._odd(rows[local_rows])

        for each in odd:
            odd_key(each)
        parts = level.columns.get(b"_id", {})
        ids = scattered(merge_keys(self._view, parts, len(part), odd_key), part.rows, self.count)
        lone = parts.get(raw.OBJECT_ID)
        if odd or len(level.columns) != 1 or lone is None or lone.rows is not None:
            return self._json(part), ids
        return scattered(object_id_keys(lone), part.rows, self.count), ids

    def _json(self, part: Part) -> pa.Array:
        values = checked_json(self._view, raw.DOCUMENT, part, self._odd)
        return scattered(pa.array(values, pa.string()), part.rows, self.count)

    def _wall_times(self) -> tuple[Part | None, Part | None]:
        """The wall times, and those that a timestamp column cannot hold."""
        part = self._part(b"wallTime", raw.DATE)
        if part is None or part.payload is None or (fits := fitting_dates(part.payload)) is None:
            return part, None
        return part.select(fits, self.count), part.select(~fits, self.count)

    def _objects(self, column: str, fields: list[tuple[bytes, int, Part]]) -> dict[str, pa.Array]:
        """A column of JSON objects of several fields of the envelope; empty if no row has any of them."""
        members: dict[int, list[str]] = {}
        for name, kind, part in sorted(fields, key=lambda field: field[:2]):
            rows = range(self.count) if part.rows is None else part.rows.tolist()
            label = text_json(name.decode())
            for row, text in zip(rows, checked_json(self._view, kind, part, self._odd), strict=True):
                members.setdefault(row, []).append(f"{label}:{text}")
        if not members:
            return {}
        objects: list[str | None] = [None] * self.count
        for row, parts in members.items():
            objects[row] = "{" + ",".join(parts) + "}"
        return {column: pa.array(objects, pa.string())}


def object_id_keys(ids: Part) -> pa.Array:
    """``{"_id":{"$oid":"..."}}`` for each of these ObjectIds."""
    return object_id_texts(ids, b'{"_id":{"$oid":"', b'"}}')


def _equal_groups(view: View, part: Part) -> list[Ints]:
    """The indices of a part's values, grouped by equal bytes; each group ascending."""
    values = texts(view, part.at, part.stop, None, len(part), pa.binary()).dictionary_encode()
    if len(values.dictionary) == 1:
        return [np.arange(len(part), dtype=np.int64)]
    codes = values.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)


def _text(view: View, level: Level, name: bytes, row: int) -> str:
    """The string that a row has in a field; empty if it has none."""
    part = level.columns.get(name, {}).get(raw.STRING)
    if part is None:
        return ""
    at = row if part.rows is None else int(np.searchsorted(part.rows, row))
    if at >= len(part) or (part.rows is not None and part.rows[at] != row):
        return ""
    return utf8(view.data[int(part.at[at]) + 4 : int(part.stop[at]) - 1]) or ""
