"""Whether the segments of a stream are all there, once each, and follow each other.

This looks at keys, footers and the state store's record. ``contents`` looks at the rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import Struct

from engine.core.ledger import FIRST_OF_SECOND, NUMBERS_PER_SECOND
from engine.core.naming import is_split
from engine.core.position import is_after, split_time, token_data, token_time
from engine.core.records import StreamRecord
from engine.errors import FatalError
from engine.lake.audit.catalogue import Entry
from engine.lake.audit.findings import Finding, Kind
from engine.lake.objects import Footer


class Known(Struct, frozen=True):
    """What the state store knew of a stream.

    Attributes:
        before: its record from before the lake was listed: what is committed there must be in the lake.
        after: its record from after that: nothing else may be in the lake. Both are None for a stream without one.
    """

    before: StreamRecord | None = None
    after: StreamRecord | None = None

    @property
    def committed(self) -> int:
        """The last segment that must be in the lake."""
        return self.before.seq if self.before is not None else 0

    def may_have(self, seq: int) -> bool:
        """Whether this segment may be in the lake."""
        after = self.after or StreamRecord()
        return seq <= after.seq or any(intent.seq == seq for intent in after.intents)


class Window(Struct, frozen=True):
    """Cluster times, in seconds since 1970; ``until`` is exclusive, and None stands for no bound."""

    since: int | None = None
    until: int | None = None

    def has(self, entries: Sequence[Entry]) -> bool:
        """Whether a segment may have events of this time; so may one whose footers say nothing of it."""
        first, last = _range_of(entries)
        start, end = (split_time(time)[0] if (time := token_time(each)) else None for each in (first, last))
        is_over = self.since is not None and end is not None and end < self.since
        is_ahead = self.until is not None and start is not None and start >= self.until
        return not (is_over or is_ahead)


class Segments:
    """Checks the segments of one stream, in order.

    State: the segment before, and how many rows, objects and rewinds there were. Owner: the caller's loop.

    Args:
        known: None if there is no state store to compare with.
    """

    def __init__(self, stream: str, known: Known | None, *, from_start: bool) -> None:
        self._stream = stream
        self._known = known
        self._is_split = is_split(stream)
        self._from_start = from_start
        self._previous: tuple[int, str, int] | None = None
        self.rewinds: list[int] = []
        self.rows = 0
        self.letters = 0

    def check(self, entries: Sequence[Entry]) -> Iterator[Finding]:
        """What is wrong with the next segment."""
        seq = entries[0].object.parts.seq
        yield from self._gap(seq)
        yield from self._unknown(seq, entries)
        own = [each for each in entries if each.footer is None or _is_at_home(each)]
        for each in entries:
            if each.problem is not None:
                yield self._finding("unreadable", seq, each.problem, each)
            elif each not in own and each.footer is not None:
                what = f"its footer says that it is of segment {each.footer.seq} of {each.footer.stream}"
                yield self._finding("misplaced", seq, what, each)
        if self._is_in_flight(seq):
            return
        yield from self._doubled(seq, own)
        yield from self._incomplete(seq, own)
        yield from self._order(seq, own)
        self.rows += sum(each.footer.rows for each in own if each.footer is not None)
        self.letters += sum(each.object.parts.dead_letter for each in own)

    def end(self) -> Iterator[Finding]:
        """What is missing after the last segment, or altogether."""
        if self._known is None or self._known.before is None:
            return
        committed = self._known.committed
        if self._previous is not None:
            yield from self._gap(committed + 1)
        elif self._known.before.rows and self._from_start:
            yield self._finding("segment_missing", committed, "there is no object of this stream")
            return
        rows = self._known.before.rows
        if self._from_start and self.rows < rows and not self.letters:
            what = f"its segments have {self.rows} rows of the {rows} events that were committed"
            yield Finding("rows_lost", self._stream, what)

    def _gap(self, seq: int) -> Iterator[Finding]:
        """The segments that should be before this one and are not."""
        if self._known is not None and self._is_in_flight(seq):
            seq = self._known.committed + 1
        if self._previous is None:
            if self._from_start and not _is_first(seq):
                yield self._finding("segment_missing", seq, "there is no object of the segments before it")
            return
        last = self._previous[0]
        if last + 1 < seq and not (_is_first(seq) and self._may_have_started_over(seq)):
            numbers = f"segment {seq - 1}" if last + 2 == seq else f"segments {last + 1} to {seq - 1}"
            yield self._finding("segment_missing", seq - 1, f"there is no object of {numbers}")

    def _may_have_started_over(self, seq: int) -> bool:
        """Whether the stream may have lost its record, and begun with this segment; see ``core.ledger``."""
        time = token_time(self._previous[1]) if self._previous else None
        return time is not None and split_time(time)[0] <= seq // NUMBERS_PER_SECOND

    def _unknown(self, seq: int, entries: Sequence[Entry]) -> Iterator[Finding]:
        if self._known is None or self._is_split:  # the record of a split goes when its backfill is finished
            return
        if self._known.after is None:
            if self._previous is None:
                yield self._finding("no_record", seq, "the state store has no record of this stream", entries[0])
        elif not self._known.may_have(seq):
            what = f"the state store has committed {self._known.after.seq} segments of this stream"
            yield self._finding("segment_beyond", seq, what, entries[0])

    def _is_in_flight(self, seq: int) -> bool:
        """Whether the segment may have been about to be published while the lake was listed."""
        known = self._known
        return known is not None and known.after is not None and seq > known.committed

    def _doubled(self, seq: int, own: Sequence[Entry]) -> Iterator[Finding]:
        places: dict[str, Entry] = {}
        for each in own:
            first = places.setdefault(_place(each), each)
            if first is not each:
                yield self._finding("object_doubled", seq, f"it is there as {first.object.key} as well", each)

    def _incomplete(self, seq: int, own: Sequence[Entry]) -> Iterator[Finding]:
        said = {each.footer.objects for each in own if each.footer is not None and each.footer.objects is not None}
        count = len({_place(each) for each in own})
        if len(said) > 1:
            what = f"its objects disagree on how many it has: {', '.join(map(str, sorted(said)))}"
            yield self._finding("object_missing", seq, what)
        elif said and count < max(said):
            yield self._finding("object_missing", seq, f"there are {count} of its {max(said)} objects", own[0])
        elif said and count > max(said):
            yield self._finding("object_doubled", seq, f"there are {count} objects of {max(said)}", own[-1])

    def _order(self, seq: int, own: Sequence[Entry]) -> Iterator[Finding]:
        footers = [each.footer for each in own if each.footer is not None]
        if len({(each.first_token, each.last_token, each.line) for each in footers}) > 1:
            yield self._finding("token_order", seq, "its objects disagree on which events it has")
        first, last = _range_of(own)
        line = max((each.line for each in footers), default=0)
        before = self._previous
        if last:
            self._previous = seq, last, line
        else:  # dead letters alone, or no footers
            self._previous = (seq, *before[1:]) if before else (seq, "", 0)
        if last and first and later(first, last):
            yield self._finding("token_order", seq, f"it ends at {told(last)}, before it begins ({told(first)})")
        if not (before and before[1] and last):
            return
        if line > before[2]:
            self.rewinds.append(seq)
        elif line < before[2]:
            yield self._finding("token_order", seq, f"it is of line {line}, after one of line {before[2]}")
        elif self._is_detached(footers, first, before[1]):
            after = next(each.after for each in footers if each.after is not None)
            what = f"it was read from {told(after.token)} on, and the one before ends at {told(before[1])}"
            yield self._finding("token_order", seq, what)
        elif self._is_back(first, last, before[1]):
            what = f"it begins at {told(first or last)}, not after the end of the one before, {told(before[1])}"
            yield self._finding("token_order", seq, what)

    def _is_detached(self, footers: Sequence[Footer], first: str, before: str) -> bool:
        """Whether a segment does not follow the end of the one before, or a later point without events."""
        after = next((each.after for each in footers if each.after is not None), None)
        if after is None or not after.token or self._is_split:
            return False
        return later(before, after.token) or (bool(first) and later(after.token, first))

    def _is_back(self, first: str, last: str, before: str) -> bool:
        """Whether a segment begins before the end of the one before.

        A segment without events ends at the end of the one before, or later; and the places of a split that is
        read again count from that.
        """
        if not first or self._is_split:
            return later(before, first or last)
        try:
            return not is_after(first, before)
        except FatalError:  # tokens of different versions
            return False

    def _finding(self, kind: Kind, seq: int, what: str, entry: Entry | None = None) -> Finding:
        where = f"segment {seq} of {self._stream}"
        return Finding(kind, where, what, entry.object.key if entry else "")


def _is_first(seq: int) -> bool:
    """Whether a stream may begin with this number."""
    return seq % NUMBERS_PER_SECOND == FIRST_OF_SECOND


def _is_at_home(entry: Entry) -> bool:
    parts, footer = entry.object.parts, entry.footer
    return footer is not None and (footer.stream, footer.seq) == (parts.stream, parts.seq)


def _place(entry: Entry) -> str:
    """What an object of a segment is for: its key, however directories were called and wherever its shard is."""
    parts = entry.object.parts
    return entry.object.key.removeprefix(parts.shard)


def _range_of(entries: Sequence[Entry]) -> tuple[str, str]:
    """The first and the last token of a segment, as far as a footer says them."""
    for each in entries:
        if each.footer is not None and _is_at_home(each):
            return each.footer.first_token, each.footer.last_token
    return "", ""


def later(one: str, other: str) -> bool:
    """Whether a token or place is after another one; False where that cannot be known."""
    try:
        return is_after(one, other)
    except FatalError:
        return False


def told(token: str) -> str:
    """A token, or a place, for a sentence."""
    return token_data(token) or token
