"""Protected fields: dropped, hashed or masked in the BSON itself, before anything else sees it.

A value of a document lands in many places: in columns, in the update's description, in the image before the
change, in ``_cdc_rescued``, in raw events, in dead letters, in every format. So the bytes are rewritten as they
arrive, and no later step needs to know.

``drop`` removes the element. ``mask`` replaces its value by the string ``***``. ``hash`` replaces it by the string
of 64 hexadecimal digits of HMAC-SHA-256, with ``schema.protect_key``, over the value's canonical text
(``identity.merge_key``): equal values have equal hashes, in all collections and whatever their numeric type. null
and undefined are no values, and stay.

A path addresses what MongoDB's own paths do: a field of a document, or of each document in an array, at any
depth; a number in it is also an index. Where names are ambiguous (a name with dots; ``a.3.b`` in an update, where
3 may be an index or a name), what any reading of them protects is protected.

``protect_rows`` is the definition, for one event or document. Here the cursors find the fields of all rows at
once, and the bytes are copied once, with the new values in place. Rows that the cursors cannot handle, and those
in which a protected field may be inside an array, are left to ``protect_rows``. Tests check that the two agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from engine.config.tree import SchemaConfig
from engine.core.naming import is_temporary
from engine.core.patterns import matches
from engine.decode.cursor import Bools, Ints, Level, Part, Plan, View, padded, scan_documents
from engine.decode.event import EventScanner
from engine.decode.identity import merge_keys
from engine.decode.protect_rows import (
    MASKED,
    NO_VALUES,
    Rows,
    Rule,
    Rules,
    canonical,
    collection_of,
    steps,
    withheld,
)
from engine.errors import ConfigError
from engine.rawbson import elements as raw
from engine.rawbson.elements import MalformedBSON
from engine.rawbson.offsets import Offsets

_EMPTY = 5  # bytes of an empty document or array


class _Edit(NamedTuple):
    """The same field of some rows: where its elements start and stop, and what replaces them."""

    rows: Ints
    start: Ints
    stop: Ints
    new: list[bytes]


class Protection:
    """Rewrites the events and documents of one configuration; remembers the headers that it has seen.

    Args:
        paths: the action for each ``<collection>.<dotted path>``, whose collection may be a pattern.
        key: of the hashes.
    """

    def __init__(self, paths: Mapping[str, str], key: str) -> None:
        self._paths = dict(paths)
        self._by_row = Rows(key.encode())
        self._known: dict[str, Rules] = {}
        self._events = EventScanner()
        self._plans: dict[tuple[str, bytes], Plan] = {}

    @classmethod
    def of(cls, config: SchemaConfig) -> Protection | None:
        """The configured one; None if nothing is protected."""
        return cls(config.protect, config.protect_key) if config.protect else None

    def documents(
        self, data: bytes, offsets: Offsets, collection: str, order: str = "_id"
    ) -> tuple[bytes, Offsets]:
        """Documents of a collection, given and returned by their bytes and where each starts and the last ends.

        Args:
            order: the field in whose order they are read, whose values are in the state store.

        Raises:
            ConfigError: that field is protected.
        """
        rules = self._rules_of(collection)
        if not rules or len(offsets) < 2:
            return data, offsets
        if steps(rules, order.encode(), skip=False)[0]:
            cause = f"{collection} is read in the order of {order}, whose values are kept in the state store"
            raise ConfigError("protect fields", cause, "Remove it from schema.protect.")
        batch = _Batch(data, offsets, self._by_row)
        plan = self._plans.setdefault((collection, b""), Plan())
        self._scan(batch, Part(None, batch.starts, batch.ends, None), rules, plan)
        return batch.rewritten(lambda at: self._by_row.document(data, at, rules), {b"_id"})

    def events(self, data: bytes, offsets: Offsets) -> tuple[bytes, Offsets]:
        """The same for change events, of any collections.

        Raises:
            ConfigError: a shard key is protected.
        """
        if len(offsets) < 2:
            return data, offsets
        batch = _Batch(data, offsets, self._by_row)
        envelopes = self._events.scan(batch.view, batch.starts, batch.ends, batch.flag)
        for (_, collection), rows in envelopes.namespaces().items():
            if rules := self._rules_of(collection):
                self._scan_events(batch, envelopes.level, rows, rules, collection)
        return batch.rewritten(lambda at: self._event(data, at), NO_VALUES)

    def _event(self, data: bytes, at: int) -> bytes | None:
        rules = self._rules_of(collection_of(data, at))
        return self._by_row.event(data, at, rules) if rules else None

    def _rules_of(self, collection: str) -> Rules:
        """The rules for documents of a collection."""
        found = self._known.get(collection)
        if found is None:
            rule = Rule()
            for key, action in self._paths.items():
                for path in paths_in(key, collection):
                    rule.add(path, action)
            found = self._known[collection] = (rule,) if rule.below else ()
        return found

    # --- all rows at once --------------------------------------------------------------------------------

    def _scan_events(self, batch: _Batch, level: Level, rows: Ints | None, rules: Rules, collection: str) -> None:
        """Find what changes in the events of one collection, which are these rows."""
        mine = None if rows is None else np.isin(np.arange(batch.count), rows)
        batch.flag(np.array([each.row for each in level.loose], np.int64))
        bounds = (batch.starts, batch.ends) if rows is None else (batch.starts[rows], batch.ends[rows])
        batch.enclose(Part(rows, *bounds, None))
        for name, kinds in level.columns.items():
            if name in NO_VALUES:
                continue
            for kind, whole in kinds.items():
                part = (
                    whole
                    if mine is None
                    else whole.select(mine if whole.rows is None else mine[whole.rows], batch.count)
                )
                plan = self._plans.setdefault((collection, name), Plan())
                if not len(part) or kind in raw.NOTHING:
                    continue
                if kind != raw.DOCUMENT or name == b"documentKey":
                    self._check(batch, name, kind, part, rules, plan)
                elif name == b"updateDescription":
                    self._scan_updates(batch, part, rules, plan)
                else:
                    self._scan(batch, part, rules, plan)

    def _check(self, batch: _Batch, name: bytes, kind: int, part: Part, rules: Rules, plan: Plan) -> None:
        """Leave to ``protect_rows`` what it refuses: a protected field in a key, an image that is no document."""
        if kind == raw.DOCUMENT:
            level = scan_documents(batch.view, part.at, part.stop, part.rows, batch.count, plan, batch.flag)
            names = {*level.columns, *(each.name for each in level.loose)}
            if any(any(steps(rules, each, skip=False)[:2]) for each in names):
                batch.flag_all(part)
        elif name in (b"fullDocument", b"fullDocumentBeforeChange", b"updateDescription", b"documentKey"):
            batch.flag_all(part)

    def _scan_updates(self, batch: _Batch, part: Part, rules: Rules, plan: Plan) -> None:
        level = scan_documents(batch.view, part.at, part.stop, part.rows, batch.count, plan, batch.flag)
        batch.enclose(part)
        batch.flag(np.array([each.row for each in level.loose], np.int64))
        for name, kinds in level.columns.items():
            for kind, found in kinds.items():
                if name == b"updatedFields" and kind == raw.DOCUMENT:
                    self._scan(batch, found, rules, plan.child(name), are_paths=True)
                elif kind in (raw.DOCUMENT, raw.ARRAY):  # lists of names, most of which are empty
                    batch.flag_all(found.select(found.stop - found.at > _EMPTY, batch.count))

    def _scan(self, batch: _Batch, part: Part, rules: Rules, plan: Plan, *, are_paths: bool = False) -> None:
        """Find what changes in these documents, of which each row has at most one."""
        level = scan_documents(batch.view, part.at, part.stop, part.rows, batch.count, plan, batch.flag)
        batch.enclose(part)
        batch.flag(np.array([each.row for each in level.loose], np.int64))
        for name, kinds in level.columns.items():
            action, under, beyond = steps(rules, name, skip=are_paths)
            for kind, found in kinds.items():
                if beyond or (under and kind == raw.ARRAY):
                    batch.flag_all(found)
                elif action and kind not in raw.NOTHING:
                    batch.edit(name, kind, found, action)
                elif under and kind == raw.DOCUMENT:
                    self._scan(batch, found, under, plan.child(name))


class _Batch:
    """Rows that are rewritten together.

    State: the rows left to ``protect_rows``, the edits, and the documents whose sizes change with them.
    """

    def __init__(self, data: bytes, offsets: Offsets, by_row: Rows) -> None:
        self._data = data
        self._offsets = offsets
        self._by_row = by_row
        self.count = len(offsets) - 1
        self.view = View(padded(data, int(offsets[-1])))
        self.starts = offsets[:-1]
        self.ends = np.clip(self.starts + self.view.int32[self.starts], self.starts, offsets[1:])
        self._odd: Bools = np.zeros(self.count, bool)
        self._edits: list[_Edit] = []
        self._enclosing: list[Part] = []

    def flag(self, rows: Ints) -> None:
        """Leave these rows to ``protect_rows``."""
        self._odd[rows] = True

    def flag_all(self, part: Part) -> None:
        """Leave all rows of a part to it."""
        self._odd[slice(None) if part.rows is None else part.rows] = True

    def enclose(self, part: Part) -> None:
        """Note documents that may contain an edit."""
        self._enclosing.append(part)

    def edit(self, name: bytes, kind: int, part: Part, action: str) -> None:
        """Protect a field."""
        start = part.at - (len(name) + 2)
        head = bytes([raw.STRING]) + name + b"\0"
        match action:
            case "drop":
                new = [b""] * len(part)
            case "mask":
                new = [head + MASKED] * len(part)
            case _:
                new = self._hashed(head, kind, part)
        self._edits.append(_Edit(self._rows_of(part), start, part.stop, new))

    def _hashed(self, head: bytes, kind: int, part: Part) -> list[bytes]:
        local = Part(None, part.at, part.stop, part.payload)
        bad: list[Ints] = []
        texts = merge_keys(self.view, {kind: local}, len(part), bad.append).to_pylist()
        for index in (int(each) for rows in bad for each in rows):
            texts[index] = None
        known: dict[str, bytes] = {}
        new = []
        for index, text in enumerate(texts):
            if text is None:
                value = canonical(self._data, kind, int(part.at[index]), int(part.stop[index]))
                new.append(head + self._by_row.hashed(value))
                continue
            if (found := known.get(text)) is None:
                found = known[text] = head + self._by_row.hashed(text.encode())
            new.append(found)
        return new

    def _rows_of(self, part: Part) -> Ints:
        return np.arange(self.count, dtype=np.int64) if part.rows is None else part.rows

    # --- the copy ----------------------------------------------------------------------------------------

    def rewritten(self, one: Callable[[int], bytes | None], harmless: set[bytes]) -> tuple[bytes, Offsets]:
        """The bytes and offsets with all changes.

        Args:
            one: rewrites the row that starts at a place; None if it does not change.
            harmless: the fields that a dead letter keeps.
        """
        edits = [self._of_even_rows(each) for each in self._edits]
        edits.append(self._of_odd_rows(one, harmless))
        start = np.concatenate([each.start for each in edits])
        if not len(start):
            return self._data, self._offsets
        order = np.argsort(start, kind="stable")
        start, stop = start[order], np.concatenate([each.stop for each in edits])[order]
        every = [value for each in edits for value in each.new]
        new = [every[index] for index in order.tolist()]
        grown = np.zeros(len(new) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, new), np.int64, len(new)) - (stop - start), out=grown[1:])

        def shift(places: Ints) -> Ints:
            return grown[np.searchsorted(start, places)]

        sized = bytearray(self._data)
        sizes = np.ndarray((len(sized) - 3,), "<i4", sized, strides=(1,))
        for part in self._enclosing:
            even = ~self._odd[self._rows_of(part)]
            at, end = part.at[even], part.stop[even]
            sizes[at] += (shift(end) - shift(at)).astype(np.int32)
        source = memoryview(sized)[: self._offsets[-1]]
        return _spliced(source, start, stop, new), self._offsets + shift(self._offsets)

    def _of_even_rows(self, edit: _Edit) -> _Edit:
        """Those of an edit's rows that are not left to ``protect_rows``."""
        even = ~self._odd[edit.rows]
        if even.all():
            return edit
        new = [value for value, kept in zip(edit.new, even.tolist(), strict=True) if kept]
        return _Edit(edit.rows[even], edit.start[even], edit.stop[even], new)

    def _of_odd_rows(self, one: Callable[[int], bytes | None], harmless: set[bytes]) -> _Edit:
        """The other rows, each replaced as a whole if it changes."""
        rows, stops, new = [], [], []
        for row in np.flatnonzero(self._odd).tolist():
            at, end = int(self._offsets[row]), int(self._offsets[row + 1])
            try:
                value = one(at)
                stop = at + int(self.view.int32[at])
            except MalformedBSON:
                value, stop = withheld(self._data, at, harmless), end
            if value is not None:
                rows.append(row)
                stops.append(stop)
                new.append(value)
        numbers = np.array(rows, np.int64)
        return _Edit(numbers, self._offsets[numbers], np.array(stops, np.int64), new)


def _spliced(source: memoryview, start: Ints, stop: Ints, new: list[bytes]) -> bytes:
    """A copy with ``new`` in place of what is between ``start`` and ``stop``, which ascend."""
    pieces: list[bytes | memoryview] = []
    at = 0
    for begin, end, value in zip(start.tolist(), stop.tolist(), new, strict=True):
        pieces += (source[at:begin], value)
        at = end
    pieces.append(source[at:])
    return b"".join(pieces)


def paths_in(key: str, collection: str) -> Iterator[str]:
    """The paths of a ``<collection>.<dotted path>`` in a collection, whose name may have dots.

    All of them if it is not known (empty), or temporary: it is about to be renamed to another one.
    """
    is_any = not collection or is_temporary(collection)
    for number in range(1, key.count(".") + 1):
        *parts, path = key.split(".", number)
        if is_any or matches(".".join(parts), collection):
            yield path
