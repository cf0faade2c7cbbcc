"""The commit protocol of one stream.

A segment goes through these phases, each entered by the event on its left:

    first batch            BUILDING    a writer collects it
    the reader cut it      CUT         the writer has been told to seal
    the writer sealed it   SEALED      finished, invisible
    (in sequence order)    RECORDED    its intent is on its way to the state store
    the intent is durable  PUBLISHING  the writer has been told to make it visible
    the writer published   PUBLISHED   the store has acknowledged every object
    (in sequence order)    gone        its commit is on its way to the state store

State: the segments in flight, the intents that may be durable, the committed position. Owner: the coordinator.

Invariants:
- Nothing is published before its intent is durable.
- Intents are sent in sequence order, so the outstanding ones are always ``committed_seq + 1 ...`` without a gap:
  a replay can cut at each of them.
- Commits are sent in sequence order, and only for the contiguous prefix of published segments.
- Writes to the state store are performed in the order in which they are sent. A commit that has been sent is
  therefore as good as durable: whatever follows it can only become durable after it.
- The committed token never moves backwards.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from enum import Enum

from msgspec import Struct
from msgspec.structs import replace

from engine.core.messages import Intent, ObjectName, Replaced
from engine.core.position import Position, split_time

MAX_SEGMENTS_PER_STREAM = 4
# A stream's first segment has the number of its start in hundredths of seconds, and this.
NUMBERS_PER_SECOND, FIRST_OF_SECOND = 100, 1


class Phase(Enum):
    """A segment's phase; see the table above."""

    BUILDING = "building"
    CUT = "cut"
    SEALED = "sealed"
    RECORDED = "recorded"
    PUBLISHING = "publishing"
    PUBLISHED = "published"


class Segment(Struct):
    """One segment in flight; ``writer`` is the index of the writer that builds it."""

    seq: int
    writer: int
    phase: Phase = Phase.BUILDING
    intent: Intent | None = None


class WriteIntent(Struct, frozen=True):
    """To do: make this intent durable, then call ``intent_durable``."""

    intent: Intent


class PublishSegment(Struct, frozen=True):
    """To do: tell the segment's writer to publish."""

    segment: Segment


class WriteCommit(Struct, frozen=True):
    """To do: make the position and ``replaced`` durable, and remove the intents ``seqs`` along with that."""

    seq: int
    position: Position
    seqs: tuple[int, ...] = ()
    rows: int = 0
    replaced: tuple[Replaced, ...] = ()


Effect = WriteIntent | PublishSegment | WriteCommit


def first_segment(start: Position) -> int:
    """The number of a new stream's first segment: the later the start, the greater.

    If the state store is lost, the stream starts over; a hundred numbers per second keep it from reusing the keys
    of existing objects.
    """
    return split_time(start.time)[0] * NUMBERS_PER_SECOND + FIRST_OF_SECOND


class Ledger:
    """The segments of one stream, from the first batch to the commit.

    Args:
        committed: the last committed position; None before the stream has one.
        committed_seq: the last committed segment; 0 before the first.
        intents: those found in the state store.
    """

    def __init__(
        self, committed: Position | None = None, committed_seq: int = 0, intents: Iterable[Intent] = ()
    ) -> None:
        self.committed = committed
        self.committed_seq = committed_seq
        self.intents = {intent.seq: intent for intent in sorted(intents, key=lambda each: each.seq)}
        expected = range(committed_seq + 1, committed_seq + 1 + len(self.intents))
        assert list(self.intents) == list(expected), "intents follow the committed segment without a gap"
        self.segments: dict[int, Segment] = {}

    def __repr__(self) -> str:
        phases = " ".join(f"{each.seq}:{each.phase.value}@{each.writer}" for each in self.segments.values())
        return f"<Ledger committed={self.committed_seq} intents={list(self.intents)} [{phases}]>"

    def begin(self, start: Position) -> None:
        """A stream that had no position has one now."""
        self.committed = start
        if not self.committed_seq:
            self.committed_seq = first_segment(start) - 1

    @property
    def is_new(self) -> bool:
        """Whether nothing is known about the stream: neither a position nor a segment number."""
        return self.committed is None and not self.committed_seq

    @property
    def last_known(self) -> int:
        """The last segment that may have objects."""
        return max(self.intents, default=self.committed_seq)

    @property
    def in_flight(self) -> int:
        """The number of segments between their first batch and their commit."""
        return len(self.segments)

    def restart(self) -> tuple[Intent, ...]:
        """Drop what is in flight; returns the intents that must be replayed, from ``committed_seq + 1`` on."""
        self.segments.clear()
        return tuple(self.intents.values())

    def segment(self, seq: int, writer: int) -> Segment:
        """The segment being built, started now with this writer if its number is new."""
        if seq not in self.segments:
            last = max(self.segments, default=self.committed_seq)
            assert seq == last + 1, f"segment {seq} after {last}"
            self.segments[seq] = Segment(seq, writer)
        return self.segments[seq]

    def start_of(self, seq: int) -> Position:
        """The position that a segment in flight follows; those before it have been cut or committed."""
        before = self.segments.get(seq - 1)
        if before is None:
            assert self.committed is not None, "a stream has a position before it has a segment"
            return self.committed
        assert before.intent is not None, f"segment {seq} follows one that is not cut"
        return before.intent.end

    def cut(self, intent: Intent) -> None:
        """The reader has said where the segment ends."""
        segment = self._in_phase(intent.seq, Phase.BUILDING)
        segment.phase, segment.intent = Phase.CUT, intent

    def sealed(self, seq: int, objects: tuple[ObjectName, ...]) -> list[Effect]:
        """The writer has finished the segment as these objects."""
        segment = self._in_phase(seq, Phase.CUT)
        cut = segment.intent
        assert cut is not None
        missing = {each.key for each in cut.objects} - {each.key for each in objects}
        assert not missing, "a replay writes at least the objects of its intent"
        segment.phase = Phase.SEALED
        segment.intent = replace(cut, objects=objects)
        return self._record_prefix()

    def _record_prefix(self) -> list[Effect]:
        effects: list[Effect] = []
        for seq in range(self.committed_seq + 1, self.committed_seq + 1 + len(self.segments)):
            segment = self.segments[seq]
            if segment.phase in (Phase.BUILDING, Phase.CUT):
                break
            if segment.phase is Phase.SEALED:
                assert segment.intent is not None
                segment.phase = Phase.RECORDED
                self.intents[seq] = segment.intent
                effects.append(WriteIntent(segment.intent))
        return effects

    def intent_durable(self, seq: int) -> list[Effect]:
        """The state store has the intent: only now may the objects become visible."""
        segment = self._in_phase(seq, Phase.RECORDED)
        segment.phase = Phase.PUBLISHING
        return [PublishSegment(segment)]

    def published(self, seq: int) -> list[Effect]:
        """All objects of the segment are acknowledged."""
        self._in_phase(seq, Phase.PUBLISHING).phase = Phase.PUBLISHED
        done: list[Segment] = []
        while (segment := self.segments.get(self.committed_seq + 1)) and segment.phase is Phase.PUBLISHED:
            done.append(self.segments.pop(segment.seq))
            self.committed_seq = segment.seq
            del self.intents[segment.seq]
        if not done:
            return []
        last = done[-1].intent
        assert last is not None
        assert self.committed is None or not last.end.precedes(self.committed), "tokens only move forward"
        self.committed = last.end
        intents = [each.intent for each in done if each.intent]
        replaced = tuple(itertools.chain.from_iterable(each.replaced for each in intents))
        rows = sum(each.rows for each in intents)
        return [WriteCommit(self.committed_seq, last.end, tuple(each.seq for each in done), rows, replaced)]

    def idle(self, position: Position) -> list[Effect]:
        """The server has nothing for this stream up to ``position``: commit that, if nothing is in flight."""
        if self.segments or self.intents or (self.committed and not self.committed.precedes(position)):
            return []
        self.committed = position
        return [WriteCommit(self.committed_seq, position)]

    def _in_phase(self, seq: int, phase: Phase) -> Segment:
        segment = self.segments.get(seq)
        assert segment is not None, f"segment {seq} is not in flight"
        assert segment.phase is phase, f"segment {seq} is {segment.phase.value}, not {phase.value}"
        return segment
