"""The vector of cursors: one cursor per document, all moving through the fields in step.

A cursor is at an element's header: its type byte, its name, a NUL. A *plan* lists the headers seen so far, in an
order consistent with the documents. One pass goes through the plan, and at each header all rows whose cursor is at
exactly this header read their value and advance. Rows without the field wait, and rows of another shape join where
they match; rows still waiting at the end of a pass continue in the next, and a header that is not in the plan is
learned from the first row waiting there. So the cost is fields x rows in numpy steps, however many shapes there
are. Steps that would advance very few rows are avoided: the last few rows, and rows whose names rarely recur, are
*walked*, element by element in plain Python, and the values found are added to the rest.

This rests on the cost of numpy operations, per row, on one core: a fancy-indexed gather takes about 5 ns whatever
the number of bytes (up to 48) at each place, an unaligned strided view of the gathered bytes 0.5 ns, a comparison
0.2 ns. So each step gathers one *window* of 32 bytes: the last byte of the previous value, which for many types
must be a NUL, the header, and usually the value too.

The bytes are never trusted: a cursor never moves past its document's end, every size is checked before it is used,
and a row that breaks a rule is flagged ``odd`` and left to ``rowwise``, which decides whether it can be decoded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from engine.rawbson import native
from engine.rawbson.elements import ENDS_WITH_NUL, FIXED_SIZES, MIN_SIZES, SIZED, MalformedBSON, value_size
from engine.rawbson.native import PAYLOADS

Ints = npt.NDArray[np.signedinteger[Any]]
Bools = npt.NDArray[np.bool_]

WINDOW = 32
PADDING = 64
MAX_HEADERS = 2048
# Up to this many rows are walked rather than given another pass, plus one for every so many headers in the plan.
_WALKED_ROWS = 6
_HEADERS_PER_ROW = 16
# A name that occurs this often in walked rows is added to the plan.
_OFTEN = 8


class View:
    """Unaligned views of a buffer, with an element starting at every byte.

    The buffer must be readable ``PADDING`` bytes past the last document; ``padded`` ensures that.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        size = len(data)
        self.bytes = np.frombuffer(data, np.uint8)
        self.int32 = np.ndarray((size - 3,), "<i4", data, strides=(1,))
        self.windows = np.ndarray((size - WINDOW + 1,), f"V{WINDOW}", data, strides=(1,))
        self.of_type = {
            kind: np.ndarray((size - dtype.itemsize + 1,), dtype, data, strides=(1,))
            for kind, dtype in PAYLOADS.items()
        }


def padded(data: bytes, end: int) -> bytes:
    """``data``, readable ``PADDING`` bytes past ``end``."""
    return data if len(data) >= end + PADDING else data + bytes(PADDING)


class Part:
    """The values of one field that have one type.

    Attributes:
        rows: ascending row numbers; None for every row of the level.
        at, stop: where each value starts and ends.
        payload: the values themselves, if their size is fixed.
    """

    __slots__ = ("at", "payload", "rows", "stop")

    def __init__(self, rows: Ints | None, at: Ints, stop: Ints, payload: npt.NDArray[Any] | None) -> None:
        self.rows = rows
        self.at = at
        self.stop = stop
        self.payload = payload

    def __len__(self) -> int:
        return len(self.at)

    def select(self, chosen: Bools | Ints, count: int) -> Part:
        """The values selected by ``chosen``; ``count`` is the number of rows of the level."""
        rows = np.arange(count, dtype=np.int64) if self.rows is None else self.rows
        payload = None if self.payload is None else self.payload[chosen]
        return Part(rows[chosen], self.at[chosen], self.stop[chosen], payload)


class Loose(NamedTuple):
    """A value found by walking, whose name is not in the plan."""

    row: int
    name: bytes
    kind: int
    at: int
    stop: int


class Level:
    """All fields of one level of nesting: ``columns[name][type]``, over ``count`` rows.

    Attributes:
        loose: values of names that are too rare to be worth a part of their own.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.columns: dict[bytes, dict[int, Part]] = {}
        self.loose: list[Loose] = []

    def adopt(self, view: View, names: Container[bytes]) -> None:
        """Turn the loose values of these names into parts."""
        found: dict[tuple[bytes, int], list[tuple[int, int, int]]] = {}
        left = []
        for each in self.loose:
            if each.name in names:
                found.setdefault((each.name, each.kind), []).append((each.row, each.at, each.stop))
            else:
                left.append(each)
        self.loose = left
        for (name, kind), values in found.items():
            rows, at, stop = np.array(values, np.int64).T
            payload = view.of_type[kind][at] if kind in PAYLOADS else None
            kinds = self.columns.setdefault(name, {})
            parts = [kinds[kind]] if kind in kinds else []
            kinds[kind] = concatenated([*parts, Part(rows, at, stop, payload)], self.count)


class Header:
    """One element header, prepared for comparison with windows."""

    __slots__ = ("fixed", "hits", "kind", "length", "masks", "name", "tail", "words")

    def __init__(self, kind: int, name: bytes) -> None:
        self.kind = kind
        self.name = name
        self.hits = 0
        header = bytes([kind]) + name + b"\0"
        self.length = len(header)
        self.fixed = FIXED_SIZES.get(kind)
        head = header[: WINDOW - 1]
        size = -(-(1 + len(head)) // 8) * 8
        self.words = [np.uint64(w) for w in np.frombuffer((b"\0" + head).ljust(size, b"\0"), "<u8")]
        mask = b"\0" + b"\xff" * len(head)
        self.masks = [np.uint64(w) for w in np.frombuffer(mask.ljust(size, b"\0"), "<u8")]
        self.tail = np.frombuffer(header[WINDOW - 1 :], np.uint8)


class Plan:
    """The headers of one level, in the order in which a pass tries them; grows as new ones are seen."""

    def __init__(self) -> None:
        self.headers: list[Header] = []
        self.names: set[bytes] = set()
        self._known: dict[tuple[int, bytes], Header] = {}
        self._children: dict[bytes, Plan] = {}

    def child(self, name: bytes) -> Plan:
        """The plan of the documents in a field, or of the elements of its arrays."""
        return self._children.setdefault(name, Plan())

    def learn(self, data: bytes, at: int, end: int) -> list[Header]:
        """Add the headers of one document, whose first element is at ``at``, in their order.

        Known headers in a different order swap places among themselves: documents that lack many fields each show
        only a part of the common order.

        Returns:
            The new headers; none if the document cannot be read.
        """
        values = walk(data, 0, at, end)
        return [] if values is None else self._order([(each.kind, each.name) for each in values])

    def _order(self, sequence: Sequence[tuple[int, bytes]]) -> list[Header]:
        known = [self._known[each] for each in sequence if each in self._known]
        places = {header: place for place, header in enumerate(self.headers)}
        for place, header in zip(sorted(places[header] for header in known), known, strict=True):
            self.headers[place] = header
        places = {header: place for place, header in enumerate(self.headers)}
        learned: list[Header] = []
        place = 0
        for kind, name in sequence:
            if (header_ := self._known.get((kind, name))) is not None:
                place = places[header_] + len(learned) + 1
            elif len(self.headers) < MAX_HEADERS:
                learned.append(self._insert(kind, name, place))
                place += 1
        return learned

    def learn_often(self, times: Mapping[tuple[int, bytes], int]) -> None:
        """Add the names that occurred often in walked rows."""
        for (kind, name), count in times.items():
            if count >= _OFTEN and (kind, name) not in self._known and len(self.headers) < MAX_HEADERS:
                self._insert(kind, name, len(self.headers))

    def forget(self, headers: Sequence[Header]) -> None:
        """Remove headers that were learned but then matched hardly any row."""
        for header in headers:
            del self._known[header.kind, header.name]
            self.headers.remove(header)
        self.names = {header.name for header in self.headers}

    def _insert(self, kind: int, name: bytes, place: int) -> Header:
        header = self._known[kind, name] = Header(kind, name)
        self.headers.insert(place, header)
        self.names.add(name)
        return header


Flag = Callable[[Ints], None]


def scan_documents(
    view: View,
    starts: Ints,
    ends: Ints,
    rows: Ints | None,
    count: int,
    plan: Plan,
    odd: Flag,
    max_names: int = MAX_HEADERS,
    worth: Callable[[Sequence[Loose]], Set[bytes]] = lambda _: frozenset(),
) -> Level:
    """Find every value of these documents.

    Args:
        starts, ends: where each document starts, and the byte after its end, both within the buffer.
        rows: the row number of each document, ascending; None when they are all ``count`` rows.
        odd: called with the rows that cannot be scanned.
        max_names, worth: if walking finds more names than this, those that are not ``worth`` it stay loose.
    """
    level = Level(count)
    if len(starts):
        if native.library:
            _scan_compiled(view, starts, ends, rows, level, odd)
        else:
            _Scan(view, starts, ends, rows, level, plan, odd).run()
        if level.loose:
            names = {each.name for each in level.loose}
            level.adopt(view, names if len(names) <= max_names else plan.names | worth(level.loose))
        if not native.library:
            _drop_duplicates(level, odd)
    return level


def _scan_compiled(view: View, starts: Ints, ends: Ints, rows: Ints | None, level: Level, odd: Flag) -> None:
    """The same as a ``_Scan``, document by document. Names beyond the first ``MAX_HEADERS`` are loose."""
    assert native.library
    found, loose, wrong = native.library.documents(view.data, starts, ends, rows, MAX_HEADERS)
    for kind, name, has_rows, entries in found:
        level.columns.setdefault(name, {})[kind] = part_of(kind, entries, has_rows, rows)
    level.loose = [Loose(*each) for each in loose]
    seen = Counter((each.row, each.name) for each in level.loose)
    wrong += [row for (row, _), times in seen.items() if times > 1]
    if wrong:
        odd(np.unique(np.array(wrong, np.int64)))


def part_of(kind: int, entries: bytes, has_rows: bool, rows: Ints | None) -> Part:
    """What compiled code has found of one type; values without rows of their own are in all of ``rows``.

    Args:
        entries: one for each value: int32s for its start, its end and, if ``has_rows``, its row, and the payload,
            if its type has one, aligned to eight bytes and at least as many.
    """
    payload = PAYLOADS.get(kind)
    ints = 12 if has_rows else 8
    size = _aligned(ints) + _aligned(payload.itemsize) if payload else ints
    count = len(entries) // size

    def member(place: int, dtype: npt.DTypeLike = np.int32) -> npt.NDArray[Any]:
        return np.ndarray((count,), dtype, entries, place, (size,))

    return Part(
        member(8) if has_rows else rows,
        member(0),
        member(4),
        member(_aligned(ints), payload) if payload else None,
    )


def _aligned(size: int) -> int:
    return -(-size // 8) * 8


class _Scan:
    """One run over one level. ``position``, ``last`` and ``window`` have one entry per row still being scanned."""

    def __init__(
        self, view: View, starts: Ints, ends: Ints, rows: Ints | None, level: Level, plan: Plan, odd: Flag
    ) -> None:
        self.view = view
        self.level = level
        self.plan = plan
        self.odd = odd
        self.rows = rows
        self.begin = starts + 4
        self.position = self.begin
        self._shares_position = True
        self.last = ends - 1  # the document's closing NUL
        self.found: dict[tuple[int, bytes], list[Part]] = {}
        wrong = (view.int32[starts] != ends - starts) | (self.last < self.position)
        wrong |= view.bytes[np.maximum(self.last, 0)] != 0
        self.window = view.windows[np.where(wrong, 0, self.position - 1)]
        self._look()
        if wrong.any():
            self._flag(np.flatnonzero(wrong))

    def _look(self) -> None:
        self.words = self.window.view("<u8").reshape(-1, WINDOW // 8)

    def run(self) -> None:
        """Make passes over the plan until every cursor is at its document's end."""
        waiting = np.flatnonzero(self.position < self.last)
        learned: list[Header] = []
        strikes = 0
        while len(waiting):
            if strikes > 1 or len(waiting) <= _WALKED_ROWS + len(self.plan.headers) // _HEADERS_PER_ROW:
                self._walk(waiting)
                break
            if 2 * len(waiting) < len(self.position):
                self._keep(waiting)
                waiting = np.arange(len(waiting))
            hits = self._pass()
            if 4 * hits < len(waiting) and learned:
                strikes += 1
                self.plan.forget([header for header in learned if 64 * header.hits < len(waiting)])
            waiting = np.flatnonzero(self.position < self.last)
            if len(waiting) and not (learned := self._learn(waiting)) and not hits:
                self._walk(waiting)
                break
        for (kind, name), parts in self.found.items():
            self.level.columns.setdefault(name, {})[kind] = concatenated(parts, self.level.count)

    def _pass(self) -> int:
        """Try each header of the plan on all rows; returns the number of values found."""
        total = 0
        for header in list(self.plan.headers):
            words, mask = self.words, header.masks
            match = (words[:, 0] & mask[0]) == header.words[0]
            for n in range(1, len(mask)):
                match &= (words[:, n] & mask[n]) == header.words[n]
            hits = int(np.count_nonzero(match))
            if hits and len(header.tail):
                match &= self._tail_matches(header, match)
                hits = int(np.count_nonzero(match))
            if hits:
                self._step(header, None if hits == len(match) else np.flatnonzero(match))
                header.hits += hits
                total += hits
        return total

    def _tail_matches(self, header: Header, match: Bools) -> Bools:
        """For names longer than a window, compare the rest byte by byte, in the rows that match so far."""
        result = np.zeros(len(match), bool)
        chosen = np.flatnonzero(match & (self.position + header.length <= self.last))
        places = self.position[chosen, None] + np.arange(WINDOW - 1, header.length)
        result[chosen] = (self.view.bytes[places] == header.tail).all(axis=1)
        return result

    def _step(self, header: Header, chosen: Ints | None) -> None:
        """The chosen rows (None for all) are at this header: take their values and advance."""
        view, kind = self.view, header.kind
        window = self.window if chosen is None else self.window[chosen]
        at = (self.position if chosen is None else self.position[chosen]) + header.length
        last = self.last if chosen is None else self.last[chosen]
        if header.fixed is not None:
            stop = at + header.fixed
        elif kind in SIZED:
            stop = at + looked_at(window, header.length + 1, SIZE, at, view.int32)
            stop += SIZED[kind]
        else:
            stop = measured(view.data, kind, at, last)
        wrong = outside(kind, at, stop, last)
        if wrong.any():
            chosen, at, stop, window = self._without(chosen, wrong, at, stop, window)
        following = view.windows[stop - 1]
        if kind in ENDS_WITH_NUL:
            open_ended = following.view(np.uint8).reshape(-1, WINDOW)[:, 0] != 0
            if open_ended.any():
                chosen, at, stop, window, following = self._without(
                    chosen, open_ended, at, stop, window, following
                )
        payload = None
        if (dtype := PAYLOADS.get(kind)) is not None:
            payload = taken(window, header.length + 1, dtype, at, view.of_type[kind])
        part = Part(self._row_numbers(chosen), at, stop, payload)
        self.found.setdefault((kind, header.name), []).append(part)
        if chosen is None:
            self.position, self.window = stop, following
            self._shares_position = True
            self._look()
        else:
            self._own_position()[chosen] = stop
            self.window[chosen] = following

    def _own_position(self) -> Ints:
        """``position``, safe to change in place: copied first if a part shares the array."""
        if self._shares_position:
            self.position, self._shares_position = self.position.copy(), False
        return self.position

    def _without(self, chosen: Ints | None, wrong: Bools, *values: npt.NDArray[Any]) -> tuple[Any, ...]:
        """The values taken from the chosen rows, without the wrong ones, which are flagged."""
        local = np.arange(len(self.position)) if chosen is None else chosen
        self._flag(local[wrong])
        fine = ~wrong
        return (local[fine], *(each[fine] for each in values))

    def _row_numbers(self, chosen: Ints | None) -> Ints | None:
        if chosen is None:
            return self.rows
        return chosen if self.rows is None else self.rows[chosen]

    def _learn(self, waiting: Ints) -> list[Header]:
        """Learn the headers of the first waiting row; returns the new ones."""
        row = waiting[0]
        return self.plan.learn(self.view.data, int(self.begin[row]), int(self.last[row]))

    def _walk(self, waiting: Ints) -> None:
        """Scan the rest of these rows one by one; their values are loose until a part adopts them."""
        rows = self._row_numbers(waiting)
        rows = waiting if rows is None else rows
        bounds = zip(rows.tolist(), self.position[waiting].tolist(), self.last[waiting].tolist(), strict=True)
        bad = []
        times: dict[tuple[int, bytes], int] = {}
        for row, begin, end in bounds:
            values = walk(self.view.data, row, begin, end)
            if values is None:
                bad.append(row)
                continue
            self.level.loose += values
            for each in values:
                times[each.kind, each.name] = times.get((each.kind, each.name), 0) + 1
        self.plan.learn_often(times)
        if bad:
            self.odd(np.array(bad, np.int64))

    def _flag(self, local: Ints) -> None:
        """Drop rows that are odd: they must not match anything any more."""
        rows = self._row_numbers(local)
        assert rows is not None
        self.odd(rows)
        self._own_position()[local] = self.last[local] = -1
        self.window[local] = np.zeros(len(local), self.window.dtype)

    def _keep(self, local: Ints) -> None:
        """Continue with these rows only; the others are at their ends."""
        self.rows = self._row_numbers(local)
        self.begin, self.position = self.begin[local], self.position[local]
        self._shares_position = False
        self.last, self.window = self.last[local], self.window[local]
        self._look()


SIZE = np.dtype("<i4")


def taken(
    window: npt.NDArray[Any], offset: int, dtype: np.dtype[Any], at: Ints, source: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    """Values ``offset`` bytes into each window, or read from ``source`` at ``at`` if they extend past it."""
    return looked_at(window, offset, dtype, at, source).copy()


def looked_at(
    window: npt.NDArray[Any], offset: int, dtype: np.dtype[Any], at: Ints, source: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    """The same, but as a view of the windows if possible."""
    if offset + dtype.itemsize > WINDOW or not len(at):
        return source[at]
    return np.ndarray((len(window),), dtype, window.data, offset, (WINDOW,))


def outside(kind: int, at: Ints, stop: Ints, last: Ints) -> Bools:
    """Which values are not within their documents, or are smaller than their type allows."""
    wrong: Bools = stop > last
    if (minimum := MIN_SIZES.get(kind)) is not None:
        wrong |= stop < at + minimum
    return wrong


def wrong_values(view: View, kind: int, at: Ints, stop: Ints, last: Ints) -> Bools:
    """Which values are ``outside``, or do not end as their type must."""
    wrong = outside(kind, at, stop, last)
    if kind in ENDS_WITH_NUL:
        wrong |= view.bytes[np.where(wrong, 0, stop - 1)] != 0
    return wrong


def measured(data: bytes, kind: int, at: Ints, last: Ints) -> Ints:
    """The ends of values whose size cannot be found by a vector step (regular expressions)."""
    stop = np.empty(len(at), np.int64)
    for row, (begin, limit) in enumerate(zip(at.tolist(), last.tolist(), strict=True)):
        try:
            stop[row] = begin + value_size(data, kind, begin)
        except MalformedBSON:
            stop[row] = limit + 1
    return stop


def walk(data: bytes, row: int, at: int, end: int) -> list[Loose] | None:
    """The elements from ``at`` to a document's ``end``; None if they break a rule or a name occurs twice."""
    values = []
    names = set()
    try:
        while at < end:
            kind = data[at]
            value = data.index(b"\0", at + 1) + 1
            name = data[at + 1 : value - 1]
            stop = value + value_size(data, kind, value)
            if stop > end or (kind in ENDS_WITH_NUL and data[stop - 1]):
                return None
            if not name.isascii():
                name.decode()
            values.append(Loose(row, name, kind, value, stop))
            names.add(name)
            at = stop
    except (MalformedBSON, ValueError):
        return None
    return values if len(names) == len(values) else None


def concatenated(parts: list[Part], count: int) -> Part:
    """Merge the parts that several passes found in a level of ``count`` rows into one with ascending rows."""
    if len(parts) == 1:
        return parts[0]
    rows = np.concatenate([np.arange(count) if part.rows is None else part.rows for part in parts])
    order = np.argsort(rows, kind="stable")
    at = np.concatenate([part.at for part in parts])[order]
    stop = np.concatenate([part.stop for part in parts])[order]
    payloads = [part.payload for part in parts if part.payload is not None]
    return Part(rows[order], at, stop, np.concatenate(payloads)[order] if payloads else None)


def _drop_duplicates(level: Level, odd: Flag) -> None:
    """Leave documents in which a name occurs twice to ``rowwise``: a part, as a column, has one value per row."""
    for kinds in level.columns.values():
        for kind, part in kinds.items():
            if part.rows is not None and (again := np.diff(part.rows, prepend=-1) == 0).any():
                odd(part.rows[again])
                kinds[kind] = part.select(~again, level.count)
        if len(kinds) > 1:
            times = np.zeros(level.count, np.int8)
            for part in kinds.values():
                times[slice(None) if part.rows is None else part.rows] += 1
            if (twice := times > 1).any():
                odd(np.flatnonzero(twice))
