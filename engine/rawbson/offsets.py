"""Where the documents of a BSON array begin."""

from __future__ import annotations

from struct import Struct as Layout

import numpy as np
import numpy.typing as npt

from engine.rawbson.elements import MalformedBSON

_INT32 = Layout("<i").unpack_from

Offsets = npt.NDArray[np.int64]


def document_offsets(data: bytes, array_start: int) -> Offsets:
    """Where each document of the array at ``array_start`` begins, and one more: the end of the last.

    The array's keys are the decimal numbers from 0 up, as every server and driver writes them.

    Raises:
        MalformedBSON: a document does not lie within the array.
    """
    end = array_start + _INT32(data, array_start)[0] - 1
    if end >= len(data):
        raise MalformedBSON(f"the array at byte {array_start} ends at byte {end}")
    found: list[int] = []
    append, size_at = found.append, _INT32
    at, count, limit, header = array_start + 4, 0, 10, 3
    while at < end:
        for _ in range(limit - count):
            if at >= end:
                break
            at += header
            append(at)
            at += size_at(data, at)[0]
        count, limit, header = limit, limit * 10, header + 1
    if at != end:
        raise MalformedBSON(f"the documents of the array at byte {array_start} end at byte {at}, not {end}")
    append(at)
    return np.array(found, dtype=np.int64)


def split_documents(data: bytes) -> list[bytes]:
    """The documents that lie one behind the other in ``data``.

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
