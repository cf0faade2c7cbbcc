"""Finds where the documents of a BSON array start.

A document's position follows only from the size of the previous one, so the array has to be walked. A short one is
walked by one cursor in plain Python. A long one is walked by many cursors in step, each from a guess: the array's
keys are consecutive numbers, so an element header found somewhere in the middle gives its own number. A wrong
guess (a document can contain bytes that look like a header) is detected: the previous cursor must land exactly on
it, at the number that it gives. The first cursor starts at the true beginning, so if all of them land, all are
right.
"""

from __future__ import annotations

import re
from struct import Struct as Layout
from struct import error as LayoutError

import numpy as np
import numpy.typing as npt

from engine.rawbson import native
from engine.rawbson.elements import MalformedBSON

_INT32 = Layout("<i").unpack_from
_HEADER = re.compile(rb"\x03([1-9][0-9]{2,7})\x00")
# Documents per cursor, and the fewest documents for which more than one cursor is worth it.
_DOCUMENTS_PER_CURSOR = 64
_MIN_DOCUMENTS = 1500
_POWERS = [10**digits for digits in range(1, 9)]

Offsets = npt.NDArray[np.int64]


def document_offsets(data: bytes, array_start: int) -> Offsets:
    """The start of each document of the array at ``array_start``, and the end of the last.

    The array's keys must be the decimal numbers from 0 up, as every server and driver writes them.

    Raises:
        MalformedBSON: a document is not within the array.
    """
    end = array_start + _INT32(data, array_start)[0] - 1
    if end >= len(data):
        raise MalformedBSON(f"the array at byte {array_start} ends at byte {end}")
    if native.library and (compiled := native.library.offsets(data, array_start)) is not None:
        return np.frombuffer(compiled, np.int64)
    found = _in_step(data, array_start + 4, end)
    return _one_by_one(data, array_start, end) if found is None else found


def _one_by_one(data: bytes, array_start: int, end: int) -> Offsets:
    found: list[int] = []
    append, size_at = found.append, _INT32
    at, count, limit, header = array_start + 4, 0, 10, 3
    try:
        while at < end:
            for _ in range(limit - count):
                if at >= end:
                    break
                at += header
                append(at)
                at += size_at(data, at)[0]
            count, limit, header = limit, limit * 10, header + 1
    except LayoutError as error:
        raise MalformedBSON(f"the documents of the array at byte {array_start} are cut off") from error
    if at != end:
        raise MalformedBSON(f"the documents of the array at byte {array_start} end at byte {at}, not {end}")
    append(at)
    return np.array(found, dtype=np.int64)


def _in_step(data: bytes, begin: int, end: int) -> Offsets | None:
    """The same with many cursors; None if the array is short or a guess was wrong."""
    guesses = _guesses(data, begin, end)
    if guesses is None:
        return None
    starts, first = guesses
    count = int(first[-1])
    order = np.argsort(first[:-1] - first[1:], kind="stable")  # longest stretch first
    lengths = np.diff(first)[order]
    at, number = starts[:-1][order], first[:-1][order]
    moving = np.searchsorted(-lengths, -np.arange(lengths[0]))  # cursors that still move at each step
    header = np.full(count, 3)
    for power in _POWERS:
        header[power:] += 1
    sizes = np.ndarray((len(data) - 3,), "<i4", data, strides=(1,))
    found = np.empty(count + 1, np.int64)
    for some in moving.tolist():
        places, numbers = at[:some], number[:some]
        places += header[numbers]
        if places.max() > len(sizes) - 1:
            return None
        found[numbers] = places
        size = sizes[places]
        places += size
        numbers += 1
        if size.min() < 5 or places.max() > end:
            return None
    found[-1] = end
    return found if (at == starts[1:][order]).all() else None


def _guesses(data: bytes, begin: int, end: int) -> tuple[Offsets, Offsets] | None:
    """Element headers at about equal distances: their positions and numbers.

    The first is the true beginning, the last the array's end; None if guessing is not worthwhile.
    """
    middle = _HEADER.search(data, (begin + end) // 2, end)
    if middle is None or int(middle[1]) < _MIN_DOCUMENTS // 2:
        return None
    cursors = 2 * int(middle[1]) // _DOCUMENTS_PER_CURSOR
    starts, numbers = [begin], [0]
    for place in range(begin, end, (end - begin) // cursors)[1:-1]:
        header = _HEADER.search(data, place, end)
        if header is not None and header.start() > starts[-1] and int(header[1]) > numbers[-1]:
            starts.append(header.start())
            numbers.append(int(header[1]))
    # No guess follows the last cursor's stretch to give its length, so it is walked here.
    at, number = starts[-1], numbers[-1]
    while at < end:
        at += 2 + len(str(number))
        if at + 4 > end:
            return None
        size = _INT32(data, at)[0]
        if size < 5:
            return None
        at += size
        number += 1
    if at != end:
        return None
    return np.array([*starts, end], np.int64), np.array([*numbers, number], np.int64)


def split_documents(data: bytes) -> list[bytes]:
    """The concatenated documents in ``data``.

    Raises:
        MalformedBSON: the last one does not end where ``data`` ends.
    """
    documents, at = [], 0
    while at < len(data):
        size = _INT32(data, at)[0] if at + 5 <= len(data) else 0
        if size < 5 or at + size > len(data):
            raise MalformedBSON(f"no document of {size} bytes at byte {at}")
        documents.append(data[at : at + size])
        at += size
    return documents
