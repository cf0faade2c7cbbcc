"""The elements of many arrays, found together: all first elements, all second ones, and so on.

Long arrays are taken one by one: a run of values of one fixed size (a vector of numbers) in one step, because
the place of each is known once the first is; everything else element by element in plain Python.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct as Layout

import numpy as np
import numpy.typing as npt

from engine.decode.cursor import (
    PAYLOADS,
    SIZE,
    WINDOW,
    Bools,
    Flag,
    Ints,
    Level,
    Part,
    View,
    measured,
    taken,
    wrong_values,
)
from engine.rawbson import elements as raw
from engine.rawbson.elements import ENDS_WITH_NUL, FIXED_SIZES, LEAST_SIZES, SIZED, MalformedBSON, value_size

# Beyond so many elements, arrays are walked in step only while so many rows go on.
_LONG = 16
_MANY_ROWS = 40
# A run of values is worth a step of its own from so many on.
_RUN = 24
_DIGITS = 7
# What a step costs, and each value in it; and what an array of some hundred values costs in runs.
_STEP_US, _VALUE_US, _RUNS_US = 60.0, 0.04, 180.0
_SIZE_OF_KIND = np.zeros(256, np.int64)
_SIZE_OF_KIND[list(FIXED_SIZES)] = list(FIXED_SIZES.values())


_INT32 = Layout("<i").unpack_from


@lru_cache(maxsize=4096)
def _key(index: int) -> bytes:
    """The name of an array's element, with its NUL."""
    return b"%d\0" % index


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


def scan_arrays(view: View, part: Part, odd: Flag) -> ArrayLevel:
    """Find every element of these arrays.

    The elements of an array are one field of an ``ArrayLevel``; its rows are elements, in the order of the
    arrays. Keys must be the numbers from 0 up, else the array's row is odd.
    """
    scan = _ArrayScan(view, part)
    scan.run()
    owners = np.arange(len(part), dtype=np.int64) if part.rows is None else part.rows
    if len(wrong := scan.wrong()):
        odd(owners[wrong])
    return scan.level(owners)


class _ArrayScan:
    """One run over some arrays.

    State:
        active: the arrays that have elements left; ``position`` and ``last`` belong to them.
        found: by type, (arrays, their elements' numbers, where those lie).
    """

    def __init__(self, view: View, part: Part) -> None:
        self._view = view
        count = len(part)
        self._lengths = np.zeros(count, np.int64)
        self._wrong: list[Ints] = []
        self._found: dict[int, list[tuple[Ints, Ints, Part]]] = {}
        position, last = part.at + 4, part.stop - 1
        lies = view.int32[part.at] == part.stop - part.at
        if not lies.all():
            self._wrong.append(np.flatnonzero(~lies))
        self._active = np.flatnonzero(lies & (position < last))
        self._position, self._last = position[self._active], last[self._active]

    def run(self) -> None:
        """All first elements, then all second ones; the long arrays one by one."""
        index = 0
        while len(self._active):
            if index >= _LONG and len(self._active) < _MANY_ROWS:
                self._finish_each(np.ones(len(self._active), bool), index)
                break
            if index == _LONG:
                self._finish_each(self._in_runs(), index)
            self._step(index)
            index += 1

    def _in_runs(self) -> Bools:
        """Which arrays are so long, and of values of one size, that a few runs each are cheaper than steps."""
        sizes = _SIZE_OF_KIND[self._view.bytes[self._position]]
        left = (self._last - self._position) // (sizes + _DIGITS)
        step_us = _STEP_US / len(self._active) + _VALUE_US
        return (sizes > 0) & (left * step_us > _RUNS_US)

    def _finish_each(self, chosen: Bools, index: int) -> None:
        """Take these arrays to their ends, one by one."""
        ends = zip(
            self._active[chosen].tolist(),
            self._position[chosen].tolist(),
            self._last[chosen].tolist(),
            strict=True,
        )
        for array, position, last in ends:
            self._finish(array, position, last, index)
        others = ~chosen
        self._active, self._position = self._active[others], self._position[others]
        self._last = self._last[others]

    def wrong(self) -> Ints:
        """The arrays that break a rule."""
        return np.concatenate(self._wrong) if self._wrong else np.zeros(0, np.int64)

    def _step(self, index: int) -> None:
        """Take element number ``index`` of all arrays that have one."""
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
        """Where the elements of one type end; None for a type that does not exist."""
        if kind in FIXED_SIZES:
            return at + FIXED_SIZES[kind]
        if kind in SIZED:
            return at + taken(window, offset, SIZE, at, self._view.int32) + SIZED[kind]  # type: ignore[no-any-return]
        return measured(self._view.data, kind, at, last) if kind == raw.REGEX else None

    def _finish(self, array: int, position: int, last: int, index: int) -> None:
        """Take the rest of one array, from element number ``index`` on."""
        data = self._view.data
        walked: dict[int, list[tuple[int, int, int]]] = {}
        begin, no_run_before = index, 0
        try:
            while position < last:
                kind = data[position]
                if kind in FIXED_SIZES and index >= no_run_before:
                    if run := self._run(array, position, last, index):
                        index += run[0]
                        position = run[1]
                        continue
                    no_run_before = index + _RUN
                key = _key(index)
                at = position + 1 + len(key)
                size = _INT32(data, at)[0] + SIZED[kind] if kind in SIZED else value_size(data, kind, at)
                stop = at + size
                if (
                    stop > last
                    or size < LEAST_SIZES.get(kind, 0)
                    or (kind in ENDS_WITH_NUL and data[stop - 1])
                    or not data.startswith(key, position + 1)
                ):
                    raise MalformedBSON(f"element {index} at byte {position}")
                walked.setdefault(kind, []).append((index, at, stop))
                index += 1
                position = stop
        except MalformedBSON:
            self._wrong.append(np.array([array]))
            return
        for kind, values in walked.items():
            indices, at_, stop_ = np.array(values, np.int64).T
            payload = self._view.of_type[kind][at_] if kind in PAYLOADS else None
            arrays = np.full(len(values), array)
            self._found.setdefault(kind, []).append((arrays, indices, Part(None, at_, stop_, payload)))
        self._lengths[array] += index - begin

    def _run(self, array: int, position: int, last: int, index: int) -> tuple[int, int] | None:
        """A run of values of one fixed size whose keys have as many digits: how many, and where they end."""
        view, kind = self._view, self._view.data[position]
        digits = len(str(index))
        header = digits + 2
        stride = header + FIXED_SIZES[kind]
        most = min(10**digits - index, (last - position) // stride)
        if most < _RUN or digits > _DIGITS - 1:
            return None
        places = position + stride * np.arange(most, dtype=np.int64)
        expected = np.zeros((most, 8), np.uint8)
        expected[:, 0] = kind
        numbers = np.arange(index, index + most)
        for digit in range(digits):
            expected[:, digits - digit] = ord("0") + numbers // 10**digit % 10
        mask = np.uint64(int.from_bytes(b"\xff" * header, "little"))
        alike = (view.of_type[raw.TIMESTAMP][places] & mask) == expected.view("<u8")[:, 0]
        count = most if alike.all() else int(np.argmin(alike))
        if count < _RUN:
            return None
        at = places[:count] + header
        payload = view.of_type[kind][at] if kind in PAYLOADS else None
        part = Part(None, at, at + FIXED_SIZES[kind], payload)
        self._found.setdefault(kind, []).append((np.full(count, array), numbers[:count], part))
        return count, position + stride * count

    def level(self, owners: Ints) -> ArrayLevel:
        """What was found, in the order of the arrays; without the arrays that break a rule."""
        gone = np.zeros(len(owners), bool)
        gone[self.wrong()] = True
        self._lengths[gone] = 0
        first = np.cumsum(self._lengths) - self._lengths
        level = ArrayLevel(np.repeat(owners, self._lengths), self._lengths)
        for kind, steps in self._found.items():
            arrays = np.concatenate([arrays for arrays, _, _ in steps])
            rows = first[arrays] + np.concatenate([indices for _, indices, _ in steps])
            order = _order(rows, np.flatnonzero(~gone[arrays]), level.count)
            payloads = [part.payload for _, _, part in steps if part.payload is not None]
            if len(order):
                level.columns.setdefault(b"", {})[kind] = Part(
                    None if len(order) == level.count else rows[order],
                    np.concatenate([part.at for _, _, part in steps])[order],
                    np.concatenate([part.stop for _, _, part in steps])[order],
                    np.concatenate(payloads)[order] if payloads else None,
                )
        return level


def _order(rows: Ints, kept: Ints, count: int) -> Ints:
    """The indices ``kept`` in the order of their ``rows``, which are different numbers below ``count``."""
    places = np.full(count, -1, np.int64)
    places[rows[kept]] = kept
    return places if len(kept) == count else places[places >= 0]
