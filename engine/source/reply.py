"""A reply of a server's cursor: where its events or documents are, and how far the server has read."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Self

import numpy as np

from engine.core.position import Position, make_token, token_time
from engine.core.segments import first_after
from engine.rawbson.elements import STRING, MalformedBSON, elements, find, read_string
from engine.rawbson.offsets import Offsets, document_offsets

_INT32 = struct.Struct("<i")
_INT64 = struct.Struct("<q")
# Only events over 16 MiB are split, so at least one of the fragments is large: a reply without a large event is
# not searched for fragments.
_LARGE_EVENT = 1 << 20


class Reply:
    """Events in stream order, as bytes.

    Attributes:
        data: the bytes that contain the events.
        offsets: the start of each event, and the end of the last: ``len(self) + 1`` numbers.
        token: everything up to here has been returned; empty if that is not known.
        ends_invalidated: the last event is an invalidate (or would be, if the pipeline let it through).
        position: the stream's position after this reply; None if that is not known.
        is_partial: this reply had the beginning of an event that the next one continues.
        is_last: nothing follows it.
        truncated: how many of its events a document was dropped from; see ``source.large_events``.
    """

    def __init__(self, data: bytes, offsets: Offsets, token: str) -> None:
        self.data = data
        self.offsets = offsets
        self.token = token
        self.ends_invalidated = False
        self.position: Position | None = None
        self.is_partial = False
        self.is_last = False
        self.truncated = 0

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Read the reply of an ``aggregate``, a ``find`` or a ``getMore``.

        Raises:
            MalformedBSON: it is not such a reply.
        """
        cursor = find(raw, 0, b"cursor")
        if cursor is None:
            raise MalformedBSON("a reply without a cursor")
        offsets, token = np.zeros(1, np.int64), ""
        for _, name, at, _ in elements(raw, cursor[1]):
            match name:
                case b"firstBatch" | b"nextBatch":
                    offsets = document_offsets(raw, at)
                case b"postBatchResumeToken":
                    token = _token_in(raw, at)
        return cls(raw, offsets, token)

    @classmethod
    def of_documents(cls, documents: Sequence[bytes], like: Reply) -> Self:
        """A reply of these events, with the token of ``like``."""
        offsets = np.zeros(len(documents) + 1, np.int64)
        np.cumsum([len(document) for document in documents], out=offsets[1:])
        return cls(b"".join(documents), offsets, like.token)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def token_time(self) -> int | None:
        """The cluster time in ``token``."""
        return token_time(self.token)

    def token_at(self, row: int) -> str:
        """The resume token of one event."""
        found = find(self.data, int(self.offsets[row]), b"_id")
        if found is None:
            raise MalformedBSON("an event without _id, which a pipeline must not remove")
        return _token_in(self.data, found[1])

    def last_token(self) -> str:
        """``token``, or the last event's if the server sends no ``postBatchResumeToken``; empty without either."""
        return self.token or (self.token_at(len(self) - 1) if len(self) else "")

    def document(self, row: int) -> bytes:
        """The bytes of one event."""
        start = int(self.offsets[row])
        return self.data[start : start + _INT32.unpack_from(self.data, start)[0]]

    def after(self, token: str) -> Reply:
        """The events after ``token``."""
        row = first_after(self, 0, len(self), token)
        rest = Reply(self.data, self.offsets[row:], self.token)
        rest.ends_invalidated = self.ends_invalidated
        return rest


def cursor_of(reply: bytes) -> tuple[int, str]:
    """The cursor's id in a reply, 0 if it is exhausted, and the name of its collection.

    Raises:
        MalformedBSON: there is no cursor.
    """
    cursor = find(reply, 0, b"cursor")
    if cursor is None:
        raise MalformedBSON("a reply without a cursor")
    cursor_id, collection = 0, ""
    for _, name, at, _ in elements(reply, cursor[1]):
        if name == b"id":
            cursor_id = _INT64.unpack_from(reply, at)[0]
        elif name == b"ns":
            collection = read_string(reply, at).partition(".")[2]
    return cursor_id, collection


class SplitEvents:
    """Reassembles split events from their fragments.

    State: the fragments of an incomplete event. A server splits an event that would exceed 16 MiB
    (``$changeStreamSplitLargeEvent``) into events that each carry some of its fields and
    ``splitEvent: {fragment, of}``. The whole event has the last fragment's token; no other one is ever exposed.
    """

    def __init__(self) -> None:
        self._fragments: list[bytes] = []

    def join(self, reply: Reply) -> Reply:
        """The reply with whole events only; trailing fragments are kept for the next one."""
        if not self._fragments and not _may_have_fragments(reply):
            return reply
        whole: list[bytes] = []
        for row in range(len(reply)):
            document = reply.document(row)
            fragment = _fragment_of(document)
            if fragment is None:
                whole.append(document)
                continue
            self._fragments.append(document)
            if fragment[0] == fragment[1]:
                whole.append(_joined(self._fragments))
                self._fragments = []
        joined = Reply.of_documents(whole, reply)
        if self._fragments:
            joined.is_partial = True
            joined.token = joined.token_at(len(joined) - 1) if len(joined) else ""
        return joined


def _may_have_fragments(reply: Reply) -> bool:
    if not len(reply):
        return False
    large = bool((np.diff(reply.offsets) > _LARGE_EVENT).any())
    return large or _fragment_of(reply.document(len(reply) - 1)) is not None


def _fragment_of(event: bytes) -> tuple[int, int] | None:
    """The number of the fragment and the number of fragments; None for a whole event."""
    found = find(event, 0, b"splitEvent")
    if found is None:
        return None
    numbers = {name: _INT32.unpack_from(event, at)[0] for _, name, at, _ in elements(event, found[1])}
    return numbers[b"fragment"], numbers[b"of"]


def _joined(fragments: Sequence[bytes]) -> bytes:
    """One event of all fragments' fields, with the last one's ``_id``."""
    body = b""
    for fragment in fragments:
        for kind, name, at, end in elements(fragment, 0):
            if name == b"splitEvent" or (name == b"_id" and fragment is not fragments[-1]):
                continue
            element = bytes([kind]) + name + b"\0" + fragment[at:end]
            body = element + body if name == b"_id" else body + element
    return _INT32.pack(len(body) + 5) + body + b"\0"


def _token_in(data: bytes, at: int) -> str:
    """The resume token document at ``at``, in the form of ``core.position``."""
    found = find(data, at, b"_data")
    document = data[at : at + _INT32.unpack_from(data, at)[0]]
    try:
        text = read_string(data, found[1]) if found is not None and found[0] == STRING else None
    except UnicodeDecodeError:
        text = None
    return make_token(text, document)
