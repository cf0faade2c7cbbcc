"""Finds the elements of many arrays together: all first elements, then all second ones, and so on.

A few long arrays are scanned one by one: a run of values of one fixed size (a vector of numbers) in one step,
because the first one determines the positions of all; everything else element by element in plain Python.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import chain, count, islice
from struct import Struct as Layout

import numpy as np
import numpy.typing as npt

from engine.decode.cursor import (
    SIZE,
    WINDOW,
    Bools,
    Flag,
    Ints,
    Level,
    Part,
    View,
    measured,
    part_of,
    taken,
    wrong_values,
)
from engine.rawbson import elements as raw
from engine.rawbson import native
from engine.rawbson.elements import ENDS_WITH_NUL, FIXED_SIZES, MIN_SIZES, SIZED, MalformedBSON, value_size
from engine.rawbson.native import PAYLOADS

# After this many elements it is decided again whether arrays are scanned in step or one by one.
_REVIEW = 16
# Costs on one core: of a step and each value in it; of a single array, each of its values, and all of its runs
# together if its values have a fixed size.
_STEP_US, _VALUE_US = 60.0, 0.1
_ARRAY_US, _WALK_US, _RUNS_US = 4.0, 0.3, 40.0
# The shortest run of values that is worth a step of its own, and the most digits in its keys.
_RUN = 24
_DIGITS = 5
# This many headers of each type are precomputed.
_KEYS = 4096
_SIZE_OF_KIND = np.full(256, -1, np.int64)
_SIZE_OF_KIND[list(FIXED_SIZES)] = list(FIXED_SIZES.values())
_SIZED_KINDS = np.zeros(256, bool)
_SIZED_KINDS[list(SIZED)] = True


_INT32 = Layout("<i").unpack_from

# Elements of one array: their numbers, starts and ends.
_Walked = tuple[list[int], list[int], list[int]]


@lru_cache(maxsize=len(raw.NAMES))
def _first_headers(kind: int) -> list[bytes]:
    return [b"%c%d\0" % (kind, index) for index in range(_KEYS)]


def _headers(kind: int, index: int) -> Iterator[bytes]:
    """The headers of an array's elements of one type, from number ``index`` on."""
    first = map(_first_headers(kind).__getitem__, range(index, _KEYS))
    return chain(first, (b"%c%d\0" % (kind, number) for number in count(max(index, _KEYS))))


@lru_cache(maxsize=_DIGITS)
def _key_words(digits: int) -> npt.NDArray[np.uint64]:
    """All keys of this many digits as the first eight bytes of a header, indexed by number."""
    numbers = np.arange(10**digits)
    words = np.zeros((len(numbers), 8), np.uint8)
    for digit in range(digits):
        words[:, digits - digit] = ord("0") + numbers // 10**digit % 10
    return words.view("<u8")[:, 0]


class ArrayLevel(Level):
    """The elements of arrays, as one unnamed field with a row per element.

    Attributes:
        owners: the row in the level above to which each element belongs, ascending.
        lengths: the number of elements of each array, in the order of the scanned arrays.
    """

    def __init__(self, owners: Ints, lengths: Ints) -> None:
        super().__init__(len(owners))
        self.owners = owners
        self.lengths = lengths


def scan_arrays(view: View, part: Part, odd: Flag) -> ArrayLevel:
    """Find every element of these arrays.

    The rows of the result are elements, in the order of the arrays. Keys must be the numbers from 0 up, otherwise
    the array's row is odd.
    """
    owners = np.arange(len(part), dtype=np.int64) if part.rows is None else part.rows
    if native.library:
        level, wrong = _scan_compiled(view, part, owners)
    else:
        scan = _ArrayScan(view, part)
        scan.run()
        level, wrong = scan.level(owners), scan.wrong()
    if len(wrong):
        odd(owners[wrong])
    return level


def _scan_compiled(view: View, part: Part, owners: Ints) -> tuple[ArrayLevel, Ints]:
    """The same as an ``_ArrayScan``, array by array: what was found, and the arrays that break a rule."""
    assert native.library
    lengths_, found, wrong = native.library.arrays(view.data, part.at, part.stop)
    lengths = np.frombuffer(lengths_, np.int64)
    level = ArrayLevel(np.repeat(owners, lengths), lengths)
    if found:
        level.columns[b""] = {kind: part_of(kind, entries, has_rows, None) for kind, has_rows, entries in found}
    return level, np.array(wrong, np.int64)


class _ArrayScan:
    """One run over some arrays.

    State:
        active: the arrays with elements left; ``position`` and ``last`` are theirs.
        found: by type, (the array or arrays, the numbers of the elements, their part).
    """

    def __init__(self, view: View, part: Part) -> None:
        self._view = view
        count = len(part)
        self._lengths = np.zeros(count, np.int64)
        self._wrong: list[Ints] = []
        self._found: dict[int, list[tuple[Ints | int, Ints, Part]]] = {}
        position, last = part.at + 4, part.stop - 1
        sound = view.int32[part.at] == part.stop - part.at
        if not sound.all():
            self._wrong.append(np.flatnonzero(~sound))
        self._active = np.flatnonzero(sound & (position < last))
        self._position, self._last = position[self._active], last[self._active]

    def run(self) -> None:
        """Scan all first elements, then all second ones; an array by itself if that is cheaper."""
        index = 0
        while len(self._active):
            if index % _REVIEW == 0:
                self._finish_each(self._cheaper_alone(index), index)
            if len(self._active):
                self._step(index)
            index += 1

    def _cheaper_alone(self, index: int) -> Bools:
        """Which arrays are cheaper by themselves than in step, if all their elements are like the next one."""
        header = 2 + len(str(index))
        kinds = self._view.bytes[self._position]
        sizes = _SIZE_OF_KIND[kinds]
        fixed = sizes >= 0
        sized = np.flatnonzero(_SIZED_KINDS[kinds])
        sizes[sized] = self._view.int32[np.minimum(self._position[sized] + header, len(self._view.int32) - 1)]
        left = (self._last - self._position) // np.maximum(sizes + header, header)
        alone_us = left * _WALK_US
        alone_us[fixed] = np.minimum(alone_us[fixed], _RUNS_US)
        return _ARRAY_US + alone_us < left * (_STEP_US / len(self._active) + _VALUE_US)

    def _finish_each(self, chosen: Bools, index: int) -> None:
        """Scan the rest of these arrays, one by one."""
        ends = zip(
            self._active[chosen].tolist(),
            self._position[chosen].tolist(),
            self._last[chosen].tolist(),
            strict=True,
        )
        for array, position, last in ends:
            try:
                self._finish(array, position, last, index)
            except MalformedBSON:
                self._wrong.append(np.array([array]))
        others = ~chosen
        self._active, self._position = self._active[others], self._position[others]
        self._last = self._last[others]

    def wrong(self) -> Ints:
        """The arrays that break a rule."""
        return np.concatenate(self._wrong) if self._wrong else np.zeros(0, np.int64)

    def _step(self, index: int) -> None:
        """Scan element number ``index`` of all arrays that have one."""
        view, active, position, last = self._view, self._active, self._position, self._last
        window = view.windows[position]
        word = np.ndarray((len(window), WINDOW // 8), "<u8", window.data)[:, 0]
        kinds = (word & np.uint64(0xFF)).astype(np.uint8)
        key = b"%d\0" % index
        offset = 1 + len(key)
        mask = np.uint64(int.from_bytes(b"\xff" * len(key), "little"))
        wrong = ((word >> np.uint64(8)) & mask) != np.uint64(int.from_bytes(key, "little"))
        stop = np.full(len(active), -1, np.int64)
        present = np.flatnonzero(np.bincount(kinds)).tolist()
        for kind in present:
            chosen: slice | Ints = slice(None)
            if len(present) > 1 or wrong.any():
                chosen = np.flatnonzero((kinds == kind) & ~wrong)
            arrays, at, limit = active[chosen], position[chosen] + offset, last[chosen]
            ends = self._ends(kind, window[chosen], offset, at, limit) if len(at) else at
            if ends is None:
                wrong[chosen] = True
                continue
            payload = None
            if (dtype := PAYLOADS.get(kind)) is not None:
                payload = taken(window[chosen], offset, dtype, at, view.of_type[kind])
            stop[chosen] = ends
            bad = wrong_values(view, kind, at, ends, limit)
            if bad.any():
                wrong[chosen] = bad
                fine = ~bad
                arrays, at, ends = arrays[fine], at[fine], ends[fine]
                payload = None if payload is None else payload[fine]
            part = Part(None, at, ends, payload)
            self._found.setdefault(kind, []).append((arrays, np.full(len(arrays), index), part))
        if wrong.any():
            self._wrong.append(active[wrong])
            fine = ~wrong
            active, last, stop = active[fine], last[fine], stop[fine]
        self._lengths[active] += 1
        going = stop < last
        self._active, self._position, self._last = active[going], stop[going], last[going]

    def _ends(self, kind: int, window: npt.NDArray[np.void], offset: int, at: Ints, last: Ints) -> Ints | None:
        """The ends of the elements of one type; None if there is no such type."""
        if kind in FIXED_SIZES:
            return at + FIXED_SIZES[kind]
        if kind in SIZED:
            return at + taken(window, offset, SIZE, at, self._view.int32) + SIZED[kind]  # type: ignore[no-any-return]
        return measured(self._view.data, kind, at, last) if kind == raw.REGEX else None

    def _finish(self, array: int, position: int, last: int, index: int) -> None:
        """Scan the rest of one array, from element number ``index`` on.

        Raises:
            MalformedBSON: an element breaks a rule.
        """
        view = self._view
        begin, no_run_before = index, index
        walked: dict[int, _Walked] = {}
        while position < last:
            kind = view.data[position]
            if kind in FIXED_SIZES and index >= no_run_before:
                if (run := self._run(kind, position, last, index)) is not None:
                    if kind in walked:
                        self._add_walked(array, kind, walked.pop(kind))
                    self._found.setdefault(kind, []).append((array, np.arange(index, index + len(run)), run))
                    index, position = index + len(run), int(run.stop[-1])
                    continue
                no_run_before = min(index + _RUN, 10 ** len(str(index)))
            indices, at, stop = walked.setdefault(kind, ([], [], []))
            known = len(at)
            limit = no_run_before - index if kind in FIXED_SIZES else None
            _walk(view.data, position, last, islice(_headers(kind, index), limit), at, stop)
            indices += range(index, index + len(at) - known)
            index, position = index + len(at) - known, stop[-1]
        for kind, found in walked.items():
            self._add_walked(array, kind, found)
        self._lengths[array] += index - begin

    def _add_walked(self, array: int, kind: int, walked: _Walked) -> None:
        indices, at, stop = (np.array(each, np.int64) for each in walked)
        payload = self._view.of_type[kind][at] if kind in PAYLOADS else None
        self._found.setdefault(kind, []).append((array, indices, Part(None, at, stop, payload)))

    def _run(self, kind: int, position: int, last: int, index: int) -> Part | None:
        """A run of values of one fixed size whose keys have equally many digits; None if it is too short."""
        digits = len(str(index))
        header = digits + 2
        stride = header + FIXED_SIZES[kind]
        max_times = min(10**digits - index, (last - position) // stride)
        if max_times < _RUN or digits > _DIGITS:
            return None
        data = self._view.data
        expected = _key_words(digits)[index : index + max_times] + np.uint64(kind)
        mask = np.uint64(int.from_bytes(b"\xff" * header, "little"))
        alike = (np.ndarray((max_times,), "<u8", data, position, (stride,)) & mask) == expected
        times = max_times if alike.all() else int(np.argmin(alike))
        if times < _RUN:
            return None
        first = position + header
        at = np.arange(first, first + times * stride, stride)
        dtype = PAYLOADS.get(kind)
        payload = None if dtype is None else np.ndarray((times,), dtype, data, first, (stride,))
        return Part(None, at, at + FIXED_SIZES[kind], payload)

    def level(self, owners: Ints) -> ArrayLevel:
        """What was found, in the order of the arrays, without those that break a rule."""
        gone = np.zeros(len(owners), bool)
        gone[self.wrong()] = True
        self._lengths[gone] = 0
        first = np.cumsum(self._lengths) - self._lengths
        level = ArrayLevel(np.repeat(owners, self._lengths), self._lengths)
        for kind, pieces in self._found.items():
            rows = np.concatenate([first[arrays] + indices for arrays, indices, _ in pieces])
            at = np.concatenate([part.at for _, _, part in pieces])
            stop = np.concatenate([part.stop for _, _, part in pieces])
            payloads = [part.payload for _, _, part in pieces if part.payload is not None]
            part = Part(rows, at, stop, np.concatenate(payloads) if payloads else None)
            if gone.any():
                fine = [np.broadcast_to(~gone[arrays], len(indices)) for arrays, indices, _ in pieces]
                part = part.select(np.concatenate(fine), level.count)
            if len(part):
                level.columns.setdefault(b"", {})[kind] = _in_order(part, level.count)
        return level


def _walk(data: bytes, position: int, last: int, headers: Iterable[bytes], at: list[int], stop: list[int]) -> None:
    """Append the bounds of consecutive elements with these headers; there must be at least one.

    Raises:
        MalformedBSON: there is none, or one breaks a rule.
    """
    kind, begin = data[position], position
    fixed, extra, min_size = FIXED_SIZES.get(kind), SIZED.get(kind), MIN_SIZES.get(kind, 0)
    ends_with_nul = kind in ENDS_WITH_NUL
    for header in headers:
        if not data.startswith(header, position):
            break
        value = position + len(header)
        if extra is not None:
            position = value + _INT32(data, value)[0] + extra
        else:
            position = value + (value_size(data, kind, value) if fixed is None else fixed)
        if position > last or position < value + min_size or (ends_with_nul and data[position - 1]):
            raise MalformedBSON(f"bad value at byte {value}")
        at.append(value)
        stop.append(position)
    if position == begin:
        raise MalformedBSON(f"unexpected element at byte {position}")


def _in_order(part: Part, level_count: int) -> Part:
    """The part with its rows, which are distinct, in ascending order; None for all rows."""
    rows = part.rows
    assert rows is not None
    if not (rows[1:] > rows[:-1]).all():
        places = np.full(level_count, -1, np.int64)
        places[rows] = np.arange(len(rows))
        part = part.select(places if len(rows) == level_count else places[places >= 0], level_count)
    if len(rows) == level_count:
        part.rows = None
    return part
