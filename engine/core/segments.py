"""Where a stream is cut into segments.

State: the open segment of one reader, and the outstanding cuts of a replay. Owner: the reader's loop.

Invariants:
- Segments are contiguous and numbered without gaps; each event is in exactly one of them.
- While intents are replayed, cuts fall exactly where they fell before: by the *order* of tokens, not by
  waiting for an equal one, because a pipeline that filters on a looked-up document may let fewer events
  through the second time. No other limit cuts during a replay.
- A cut is between events, never inside one (the source has already reassembled split events).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from engine.core.messages import Intent, ObjectName
from engine.core.position import Position, is_after, is_same, token_time


class Limits(Struct, frozen=True):
    """When a segment is full.

    Attributes:
        rows, size: a segment ends with the event that reaches this many events or bytes of raw BSON.
        age_s: it ends this many seconds after its first event was taken.
    """

    rows: int
    size: int
    age_s: float


class Ascending(Protocol):
    """Ascending numbers: a sequence, or an array."""

    def __len__(self) -> int:
        """How many."""

    def __getitem__(self, index: int, /) -> int:
        """One of them."""


class Events(Protocol):
    """The events of one reply, in stream order."""

    def __len__(self) -> int:
        """How many."""

    def token_at(self, row: int) -> str:
        """The resume token of one event."""

    @property
    def offsets(self) -> Ascending:
        """Byte offset of each event, and of the end of the last: ``len + 1`` ascending numbers."""

    @property
    def ends_invalidated(self) -> bool:
        """Whether the last event is an invalidate, after which the server has closed the stream."""


class SegmentEnd(Struct, frozen=True):
    """A finished segment, as the writer and the ledger need to know it."""

    intent: Intent
    reason: str


class Segmenter:
    """Decides, for events in stream order, which segment takes them and where it ends."""

    def __init__(
        self,
        limits: Limits,
        next_seq: int,
        replay: Sequence[Intent] = (),
        until: int | None = None,
        start: Position | None = None,
    ) -> None:
        self._limits = limits
        self._replay = deque(replay)
        assert not replay or replay[0].seq == next_seq, "a replay starts at the next segment"
        self._until = until
        self.seq = next_seq
        self.end = start or Position()
        self._rows = 0
        self._size = 0
        self._first_token: str | None = None
        self._opened_at = 0.0

    @property
    def is_open(self) -> bool:
        """Whether the open segment has events."""
        return self._rows > 0

    @property
    def replaying(self) -> bool:
        """Whether an intent is still to be replayed."""
        return bool(self._replay)

    def reach(self, events: Events, start: int, chunk_rows: int) -> int:
        """How far the open segment may extend from row ``start``: up to but excluding the returned row.

        That is ``start`` itself if the next row comes after the next cut of a replay, or after ``until``;
        otherwise at least one row, and at most ``chunk_rows``.
        """
        stop = min(len(events), start + chunk_rows)
        if self._replay:
            return first_after(events, start, stop, self._replay[0].end.token)
        if self._until is not None:
            stop = _first_later(events, start, stop, self._until)
        return self._within_limits(events, start, stop) if stop > start else stop

    def take(self, events: Events, start: int, stop: int, now: float) -> SegmentEnd | None:
        """Add the rows from ``start`` to ``stop`` to the open segment; returns its end if they complete it.

        ``stop`` is at most what ``reach`` returned.
        """
        if stop > start:
            self._add(events, start, stop, now)
        if self._replay:
            cut = self._replay[0].end.token
            is_past = stop < len(events) and is_after(events.token_at(stop), cut)
            return self._cut("replay") if is_past or is_same(self.end.token, cut) else None
        full = self._rows >= self._limits.rows or self._size >= self._limits.size
        return self._cut("full") if full else None

    def _within_limits(self, events: Events, start: int, stop: int) -> int:
        offsets = events.offsets
        stop = min(stop, start + self._limits.rows - self._rows)
        return bisect_left(offsets, offsets[start] + self._limits.size - self._size, start + 1, stop)

    def _add(self, events: Events, start: int, stop: int, now: float) -> None:
        if not self._rows:
            self._opened_at = now
            self._first_token = events.token_at(start)
        self._rows += stop - start
        self._size += events.offsets[stop] - events.offsets[start]
        token = events.token_at(stop - 1)
        invalidated = events.ends_invalidated and stop == len(events)
        time = token_time(token) or self.end.time  # a split's places have no time; the whole split has one
        self.end = Position(token, time, after_invalidate=invalidated)

    def scanned(self, token: str) -> SegmentEnd | None:
        """The server has returned every event up to ``token``: ends a replayed segment that is now complete."""
        if self._replay and not is_after(self._replay[0].end.token, token):
            return self._cut("replay")
        return None

    def expired(self, now: float) -> SegmentEnd | None:
        """Ends the open segment when it is old enough."""
        if not self._replay and self._rows and now - self._opened_at >= self._limits.age_s:
            return self._cut("interval")
        return None

    def deadline(self) -> float | None:
        """When ``expired`` will have something to end."""
        return self._opened_at + self._limits.age_s if self._rows and not self._replay else None

    def flush(self, reason: str) -> SegmentEnd | None:
        """Ends the open segment now, unless it is a replayed one or empty."""
        return self._cut(reason) if self._rows and not self._replay else None

    def _cut(self, reason: str) -> SegmentEnd:
        objects: tuple[ObjectName, ...] = ()
        if self._replay:
            replayed = self._replay.popleft()
            assert replayed.seq == self.seq
            self.end, objects = replayed.end, replayed.objects
        intent = Intent(self.seq, self._first_token, self.end, objects, self._rows)
        self.seq += 1
        self._rows = self._size = 0
        self._first_token = None
        return SegmentEnd(intent, reason)


def first_after(events: Events, start: int, stop: int, token: str) -> int:
    """The first row from ``start`` to ``stop`` that comes after ``token`` in the stream; ``stop`` if none does."""
    while start < stop:
        middle = (start + stop) // 2
        if is_after(events.token_at(middle), token):
            stop = middle
        else:
            start = middle + 1
    return start


def _first_later(events: Events, start: int, stop: int, time: int) -> int:
    """The first row from ``start`` to ``stop`` whose cluster time is later than ``time``; ``stop`` if none is."""
    while start < stop:
        middle = (start + stop) // 2
        if (token_time(events.token_at(middle)) or 0) > time:
            stop = middle
        else:
            start = middle + 1
    return start
