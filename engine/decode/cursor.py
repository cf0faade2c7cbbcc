"""The vector of cursors: one cursor per document, all moving through the fields in step.

A cursor stands at an element's header: its type byte, its name, a NUL. A *plan* lists the headers that were
met before, in an order that the documents agree with; one pass goes through the plan, and at each header all
rows whose cursor stands at just this header read their value and move on. Rows that lack the field wait, rows
of another shape join where they match; whoever waits at the end of a pass is served by the next, and a header
that no plan knows is learned from the first row that waits there. The cost is therefore fields x rows in
numpy steps, however many shapes there are.

numpy facts this is built on, per row, on one core: a fancy-indexed gather costs about 5 ns however many bytes
(up to 48) it takes from each place, an unaligned strided view of what was gathered 0.5 ns, a comparison
0.2 ns. So each move gathers one *window* of 32 bytes, which holds the header, and mostly the value too.

Nothing here trusts the bytes: a cursor never moves behind its document's end, every size is checked before it
is used, and a row that breaks a rule is flagged ``odd`` and left to ``rowwise``, which says what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.rawbson.elements import FIXED_SIZES, SIZED, MalformedBSON, value_size

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

WINDOW = 32
PADDING = 64
MAX_HEADERS = 4096
# Beyond so many elements, arrays are walked in step only while enough rows go on; then row by row.
_LONG_ARRAY = 64
_FEW_ROWS = 16

DOUBLE, STRING, DOCUMENT, ARRAY, BINARY, UNDEFINED, OBJECT_ID, BOOL, DATE, NULL = range(1, 11)
REGEX, INT32, TIMESTAMP, INT64, DECIMAL128 = 0x0B, 0x10, 0x11, 0x12, 0x13

_PAYLOADS: dict[int, np.dtype[Any]] = {
    DOUBLE: np.dtype("<f8"),
    OBJECT_ID: np.dtype("V12"),
    BOOL: np.dtype("u1"),
    DATE: np.dtype("<i8"),
    INT32: np.dtype("<i4"),
    TIMESTAMP: np.dtype("<u8"),
    INT64: np.dtype("<i8"),
    DECIMAL128: np.dtype("V16"),
}
_ENDS_WITH_NUL = {STRING, DOCUMENT, ARRAY, 0x0D, 0x0E}
_LEAST_SIZE = {STRING: 5, DOCUMENT: 5, ARRAY: 5, BINARY: 5, 0x0D: 5, 0x0E: 5, 0x0C: 17, 0x0F: 14}


class View:
    """Unaligned views of a buffer, each element at every byte.

    The buffer must be readable ``PADDING`` bytes behind the last document; ``padded`` sees to that.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        size = len(data)
        self.bytes = np.frombuffer(data, np.uint8)
        self.int32 = np.ndarray((size - 3,), "<i4", data, strides=(1,))
        self.windows = np.ndarray((size - WINDOW + 1,), f"V{WINDOW}", data, strides=(1,))
        self.of_type = {
            kind: np.ndarray((size - dtype.itemsize + 1,), dtype, data, strides=(1,))
            for kind, dtype in _PAYLOADS.items()
        }


def padded(data: bytes, end: int) -> bytes:
    """``data``, readable ``PADDING`` bytes behind ``end``."""
    return data if len(data) >= end + PADDING else data + bytes(PADDING)


class Part:
    """The values of one field that have one type.

    Attributes:
        rows: ascending row numbers; None for every row of the level.
        at, stop: where each value begins and ends.
        payload: the values themselves, where their size is fixed.
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
        """The values that ``chosen`` picks; ``count`` is the number of rows of the level."""
        rows = np.arange(count, dtype=np.int64) if self.rows is None else self.rows
        payload = None if self.payload is None else self.payload[chosen]
        return Part(rows[chosen], self.at[chosen], self.stop[chosen], payload)


class Level:
    """All fields of one level of nesting: ``columns[name][type]``, over ``count`` rows."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.columns: dict[bytes, dict[int, Part]] = {}


class ArrayLevel(Level):
    """The elements of arrays, as one unnamed field over all of them.

    Attributes:
        owners: the row of the level above that each element belongs to, ascending.
        lengths: elements of each array, in the order of the arrays that were scanned.
    """

    def __init__(self, owners: Ints, lengths: Ints) -> None:
        super().__init__(len(owners))
        self.owners = owners
        self.lengths = lengths


class Header:
    """One element header, ready to be compared with windows."""

    __slots__ = ("fixed", "kind", "length", "masks", "name", "tail", "words")

    def __init__(self, kind: int, name: bytes) -> None:
        self.kind = kind
        self.name = name
        header = bytes([kind]) + name + b"\0"
        self.length = len(header)
        self.fixed = FIXED_SIZES.get(kind)
        head = header[:WINDOW]
        count = -(-len(head) // 8)
        self.words = [np.uint64(w) for w in np.frombuffer(head.ljust(8 * count, b"\0"), "<u8")]
        self.masks = [np.uint64(w) for w in np.frombuffer((b"\xff" * len(head)).ljust(8 * count, b"\0"), "<u8")]
        self.tail = np.frombuffer(header[WINDOW:], np.uint8)


class Plan:
    """The headers of one level, in the order in which a pass tries them; learns as it goes."""

    def __init__(self) -> None:
        self.headers: list[Header] = []
        self._known: dict[tuple[int, bytes], Header] = {}
        self._children: dict[bytes, Plan] = {}

    def child(self, name: bytes) -> Plan:
        """The plan of the documents in a field, or of the elements of its arrays."""
        return self._children.setdefault(name, Plan())

    def learn(self, data: bytes, at: int, end: int) -> bool:
        """Take up the headers of one document from the element at ``at`` on.

        False when there is nothing new in it, or when it cannot be read.
        """
        learned, place = False, 0
        try:
            while at < end:
                kind = data[at]
                value = data.index(b"\0", at + 1) + 1
                name = data[at + 1 : value - 1]
                header = self._known.get((kind, name))
                if header is None:
                    if len(self.headers) >= MAX_HEADERS:
                        return learned
                    header = self._known[kind, name] = Header(kind, name)
                    self.headers.insert(place, header)
                    learned = True
                    place += 1
                else:
                    place = max(place, self.headers.index(header) + 1)
                at = value + value_size(data, kind, value)
        except (MalformedBSON, ValueError, IndexError):
            pass
        return learned


Flag = Callable[[Ints], None]


def scan_documents(
    view: View, starts: Ints, ends: Ints, rows: Ints | None, count: int, plan: Plan, odd: Flag
) -> Level:
    """Find every value of these documents.

    Args:
        starts, ends: where each document begins, and the byte behind it, both within the buffer.
        rows: the row number of each document, ascending; None when they are all ``count`` rows.
        odd: is told the rows that cannot be scanned.
    """
    level = Level(count)
    if len(starts):
        scan = _Scan(view, starts, ends, rows, level, plan, odd)
        scan.run()
        _flag_duplicates(level, odd)
    return level


class _Scan:
    """One run over one level. ``position``, ``last`` and ``window`` have one entry per row that still moves."""

    def __init__(
        self, view: View, starts: Ints, ends: Ints, rows: Ints | None, level: Level, plan: Plan, odd: Flag
    ) -> None:
        self.view = view
        self.level = level
        self.plan = plan
        self.odd = odd
        self.rows = rows
        self.position = starts + 4
        self.last = ends - 1  # the document's closing NUL
        self.found: dict[tuple[int, bytes], list[Part]] = {}
        wrong = (view.int32[starts] != ends - starts) | (self.last < self.position)
        wrong |= view.bytes[np.maximum(self.last, 0)] != 0
        self.window = view.windows[np.where(wrong, 0, self.position)]
        self._look()
        if wrong.any():
            self._flag(np.flatnonzero(wrong))

    def _look(self) -> None:
        self.words = self.window.view("<u8").reshape(-1, WINDOW // 8)

    def run(self) -> None:
        """Passes over the plan until every cursor has come to its document's end."""
        while True:
            moved = self._pass()
            waiting = np.flatnonzero(self.position < self.last)
            if not len(waiting):
                break
            if not moved and not self._learn(waiting):
                self._flag(waiting)
                break
            if 2 * len(waiting) < len(self.position):
                self._keep(waiting)
        for (kind, name), parts in self.found.items():
            self.level.columns.setdefault(name, {})[kind] = _concatenated(parts)

    def _pass(self) -> bool:
        moved = False
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
                moved = True
        return moved

    def _tail_matches(self, header: Header, match: Bools) -> Bools:
        """Names longer than a window: compare the rest byte for byte, for the rows that match so far."""
        result = np.zeros(len(match), bool)
        chosen = np.flatnonzero(match & (self.position + header.length <= self.last))
        places = self.position[chosen, None] + np.arange(WINDOW, header.length)
        result[chosen] = (self.view.bytes[places] == header.tail).all(axis=1)
        return result

    def _step(self, header: Header, chosen: Ints | None) -> None:
        """The chosen rows (None for all) stand at this header: take their values and move on."""
        view, kind = self.view, header.kind
        window = self.window if chosen is None else self.window[chosen]
        at = (self.position if chosen is None else self.position[chosen]) + header.length
        last = self.last if chosen is None else self.last[chosen]
        if header.fixed is not None:
            stop = at + header.fixed
        elif kind in SIZED:
            stop = at + _taken(window, header.length, _SIZE, at, view.int32) + SIZED[kind]
        else:
            stop = _measured(view.data, kind, at, last)
        wrong = _wrong(view, kind, at, stop, last)
        if wrong.any():
            everyone = np.arange(len(self.position)) if chosen is None else chosen
            self._flag(everyone[wrong])
            fine = ~wrong
            chosen, at, stop, window = everyone[fine], at[fine], stop[fine], window[fine]
        payload = None
        if (dtype := _PAYLOADS.get(kind)) is not None:
            payload = _taken(window, header.length, dtype, at, view.of_type[kind])
        part = Part(self._row_numbers(chosen), at, stop, payload)
        self.found.setdefault((kind, header.name), []).append(part)
        if chosen is None:
            self.position, self.window = stop.copy(), view.windows[stop]  # the part keeps its own
            self._look()
        else:
            self.position[chosen] = stop
            self.window[chosen] = view.windows[stop]

    def _row_numbers(self, chosen: Ints | None) -> Ints | None:
        if chosen is None:
            return self.rows
        return chosen if self.rows is None else self.rows[chosen]

    def _learn(self, waiting: Ints) -> bool:
        """Learn from the first rows that wait; False when none of them has anything to teach."""
        for row in waiting[:_FEW_ROWS]:
            if self.plan.learn(self.view.data, int(self.position[row]), int(self.last[row])):
                return True
        return False

    def _flag(self, local: Ints) -> None:
        """Take rows out: they are odd, and must not match anything any more."""
        rows = self._row_numbers(local)
        assert rows is not None
        self.odd(rows)
        self.position[local] = self.last[local] = -1
        self.window[local] = np.zeros(len(local), self.window.dtype)

    def _keep(self, local: Ints) -> None:
        """Go on with these rows only; the others have come to their end."""
        self.rows = self._row_numbers(local)
        self.position, self.last, self.window = self.position[local], self.last[local], self.window[local]
        self._look()


_SIZE = np.dtype("<i4")


def _taken(
    window: npt.NDArray[Any], offset: int, dtype: np.dtype[Any], at: Ints, source: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    """Values that lie ``offset`` bytes into each window, or at ``at`` where they lie behind it."""
    if offset + dtype.itemsize > WINDOW:
        return source[at]
    return np.ndarray((len(window),), dtype, window.data, offset, (WINDOW,)).copy()


def _wrong(view: View, kind: int, at: Ints, stop: Ints, last: Ints) -> Bools:
    """Which values do not lie within their documents, or do not end as their type must."""
    wrong = stop > last
    if (least := _LEAST_SIZE.get(kind)) is not None:
        wrong |= stop < at + least
    if kind in _ENDS_WITH_NUL:
        wrong |= view.bytes[np.where(wrong, 0, stop - 1)] != 0
    return wrong


def _measured(data: bytes, kind: int, at: Ints, last: Ints) -> Ints:
    """The ends of values whose size no vector step can tell (regular expressions)."""
    stop = np.empty(len(at), np.int64)
    for row, (begin, limit) in enumerate(zip(at.tolist(), last.tolist(), strict=True)):
        try:
            stop[row] = begin + value_size(data, kind, begin)
        except MalformedBSON:
            stop[row] = limit + 1
    return stop


def _concatenated(parts: list[Part]) -> Part:
    """The parts that several passes found, as one with ascending rows."""
    if len(parts) == 1:
        return parts[0]
    rows = np.concatenate([part.rows for part in parts if part.rows is not None])
    order = np.argsort(rows, kind="stable")
    at = np.concatenate([part.at for part in parts])[order]
    stop = np.concatenate([part.stop for part in parts])[order]
    payloads = [part.payload for part in parts if part.payload is not None]
    return Part(rows[order], at, stop, np.concatenate(payloads)[order] if payloads else None)


def _flag_duplicates(level: Level, odd: Flag) -> None:
    """A document with one name twice is for ``rowwise``: a column holds one value."""
    for kinds in level.columns.values():
        parts = list(kinds.values())
        rows = [np.arange(level.count) if part.rows is None else part.rows for part in parts]
        if len(parts) == 1 and (parts[0].rows is None or not (np.diff(parts[0].rows) == 0).any()):
            continue
        numbers, times = np.unique(np.concatenate(rows), return_counts=True)
        if (times > 1).any():
            odd(numbers[times > 1])


def scan_arrays(view: View, part: Part, odd: Flag) -> ArrayLevel:
    """Find every element of these arrays.

    The elements of an array are one field of an ``ArrayLevel``; its rows are elements, in the order of the
    arrays. Keys must be the numbers from 0 up, else the array's row is odd.
    """
    count = len(part)
    owners_above = np.arange(count, dtype=np.int64) if part.rows is None else part.rows
    position, last = part.at + 4, part.stop - 1
    active = np.arange(count, dtype=np.int64)
    lengths = np.zeros(count, np.int64)
    found: dict[int, list[tuple[Ints, int, Part]]] = {}

    def drop(wrong: Ints) -> None:
        odd(owners_above[wrong])
        lengths[wrong] = 0

    index = 0
    dropped: list[Ints] = []
    while len(active):
        window = view.windows[position]
        words = np.ndarray((len(window), WINDOW // 8), "<u8", window.data)
        kinds = (words[:, 0] & np.uint64(0xFF)).astype(np.uint8)
        going = position < last
        if not going.all():
            active, position, last = active[going], position[going], last[going]
            window, words, kinds = window[going], words[going], kinds[going]
            if not len(active):
                break
        if index >= _LONG_ARRAY and len(active) < _FEW_ROWS:
            dropped.append(active)
            break
        key = str(index).encode() + b"\0"
        mask = np.uint64(int.from_bytes(b"\xff" * len(key), "little"))
        wrong = ((words[:, 0] >> np.uint64(8)) & mask) != np.uint64(int.from_bytes(key, "little"))
        offset = 1 + len(key)
        stop = np.full(len(active), -1, np.int64)
        for kind in np.unique(kinds).tolist():
            chosen = np.flatnonzero((kinds == kind) & ~wrong)
            if not len(chosen):
                continue
            at = position[chosen] + offset
            ends = _element_ends(view, kind, window[chosen], offset, at, last[chosen])
            if ends is None:
                wrong[chosen] = True
                continue
            bad = _wrong(view, kind, at, ends, last[chosen])
            if bad.any():
                wrong[chosen[bad]] = True
                chosen, at, ends = chosen[~bad], at[~bad], ends[~bad]
            stop[chosen] = ends
            payload = None
            if (dtype := _PAYLOADS.get(kind)) is not None:
                payload = _taken(window[chosen], offset, dtype, at, view.of_type[kind])
            found.setdefault(kind, []).append((active[chosen], index, Part(None, at, ends, payload)))
        if wrong.any():
            dropped.append(active[wrong])
        fine = ~wrong
        active, last, position = active[fine], last[fine], stop[fine]
        lengths[active] += 1
        index += 1
    for rows in dropped:
        drop(rows)
    return _array_level(owners_above, lengths, found, np.concatenate(dropped) if dropped else None)


def _element_ends(
    view: View, kind: int, window: npt.NDArray[Any], offset: int, at: Ints, last: Ints
) -> Ints | None:
    """Where the elements of one type end; None for a type that does not exist."""
    if kind in FIXED_SIZES:
        return at + FIXED_SIZES[kind]
    if kind in SIZED:
        return at + _taken(window, offset, _SIZE, at, view.int32) + SIZED[kind]  # type: ignore[no-any-return]
    return _measured(view.data, kind, at, last) if kind == REGEX else None


def _array_level(
    owners_above: Ints,
    lengths: Ints,
    found: dict[int, list[tuple[Ints, int, Part]]],
    dropped: Ints | None,
) -> ArrayLevel:
    """Put the elements that were found step by step into the order of the arrays."""
    first = np.cumsum(lengths) - lengths
    level = ArrayLevel(np.repeat(owners_above, lengths), lengths)
    gone = np.zeros(len(lengths), bool)
    if dropped is not None:
        gone[dropped] = True
    for kind, steps in found.items():
        arrays = np.concatenate([arrays for arrays, _, _ in steps])
        rows = np.concatenate([first[arrays] + index for arrays, index, _ in steps])
        at = np.concatenate([part.at for _, _, part in steps])
        stop = np.concatenate([part.stop for _, _, part in steps])
        payloads = [part.payload for _, _, part in steps if part.payload is not None]
        kept = ~gone[arrays]
        order = np.argsort(rows[kept], kind="stable")
        payload = np.concatenate(payloads)[kept][order] if payloads else None
        part = Part(rows[kept][order], at[kept][order], stop[kept][order], payload)
        if len(part):
            level.columns.setdefault(b"", {})[kind] = part
    return level
