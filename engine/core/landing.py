"""From batches to committed segments: which writer builds a segment, and how the ledger's effects are carried out.

State: the counts of rescued values; everything else is in the streams' ledgers and counters. Owner: the
coordinator.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from engine.core import records
from engine.core.actions import Child, Log, Send, Write
from engine.core.children import Children
from engine.core.decisions import Decision, Interrupt
from engine.core.grants import Grants
from engine.core.ledger import MAX_SEGMENTS_PER_STREAM, Effect, Phase, PublishSegment, WriteCommit, WriteIntent
from engine.core.messages import (
    Batch,
    BatchReady,
    Publish,
    Published,
    Replaced,
    Seal,
    Sealed,
    SegmentCut,
    SlabRequest,
)
from engine.core.naming import has_old_directories
from engine.core.readers import Readers
from engine.core.replacements import Replacements
from engine.core.rescues import Rescues
from engine.core.schemas import Schemas
from engine.core.splits import Splits
from engine.core.store import Written
from engine.core.stream import Stream


class Landing:
    """How the segments of an engine's streams get into the lake."""

    def __init__(
        self,
        max_writers: int,
        streams: Mapping[str, Stream],
        children: Children,
        grants: Grants,
        schemas: Schemas,
        splits: Splits,
        replacements: Replacements,
    ) -> None:
        self._max_writers = max_writers
        self._streams = streams
        self._children = children
        self._grants = grants
        self._schemas = schemas
        self._splits = splits
        self._replacements = replacements
        self.rescues = Rescues()

    def batch(self, stream: Stream, message: BatchReady) -> list[Decision]:
        """A reader has filled a slab."""
        writer = self._writer_of(stream, message.seq)
        if writer is None:
            self._grants.free(message.offset)
            return [Interrupt(stream)]
        stream.ledger.segment(message.seq, writer.index)
        self._grants.hand_over(message.offset, writer)
        stream.counters.events_read += message.rows
        stream.counters.bytes_read += message.raw_bytes
        stream.counters.truncated_events += message.truncated
        stream.counters.rescued_values += self.rescues.add(message.rescued)
        replayed = stream.ledger.intents.get(message.seq)
        keys = [each.key for each in replayed.objects] if replayed else []
        old_layout = has_old_directories(keys)
        place = message.seq, message.offset, message.size
        batch = Batch(stream.name, stream.generation, *place, old_layout, stream.epoch)
        return [Send(writer, batch)]

    def cut(self, stream: Stream, message: SegmentCut) -> list[Decision]:
        """A reader has said where a segment ends."""
        intent = message.intent
        writer = self._writer_of(stream, intent.seq)
        if writer is None:
            return [Interrupt(stream)]
        stream.ledger.segment(intent.seq, writer.index)
        stream.ledger.cut(intent)
        fields = {"stream": stream.name, "seq": intent.seq, "rows": intent.rows, "reason": message.reason}
        log = Log("debug", "segment cut", fields)
        start, line = stream.ledger.start_of(intent.seq), stream.record.line
        seal = Seal(stream.name, stream.generation, intent, start, line, _replaced_up_to(stream, intent.seq))
        return [log, Send(writer, seal)]

    def _writer_of(self, stream: Stream, seq: int) -> Child | None:
        """The writer that builds the segment; for a new one, the ready writer with the fewest in flight."""
        if (segment := stream.ledger.segments.get(seq)) is not None:
            return Child("writer", segment.writer)
        load = {writer.index: 0 for writer in self._children.ready("writer")}
        for each in self._streams.values():
            for segment in each.ledger.segments.values():
                if segment.writer in load:
                    load[segment.writer] += 1
        return Child("writer", min(load, key=lambda index: (load[index], index))) if load else None

    def from_writer(self, stream: Stream, message: Sealed | Published) -> list[Decision]:
        """A writer has finished a segment, or published it."""
        if isinstance(message, Published):
            return self.apply(stream, stream.ledger.published(message.seq))
        stream.counters.bytes_landed += message.size
        stream.counters.objects += len(message.objects)
        stream.counters.dead_letters += message.dead_letters
        return self.apply(stream, stream.ledger.sealed(message.seq, message.objects))

    def serve(self, readers: Readers) -> list[Send]:
        """Grant the slabs that readers wait for, if their streams may have more segments in flight."""

        def allowed(reader: Child, request: SlabRequest) -> bool:
            stream = readers.stream_of(reader)
            assert stream is not None, "a reader without a stream has no request: it was withdrawn"
            known = request.seq in stream.ledger.segments
            return known or stream.ledger.in_flight < MAX_SEGMENTS_PER_STREAM

        return self._grants.serve(allowed) if self._children.ready("writer") else []

    def enlist_writers(self, now: float) -> list[Decision]:
        """Start another writer when the current ones have two segments each in flight and more are waiting.

        A writer can build one segment while it uploads another; one more process costs memory, and half a second
        of CPU for its imports.
        """
        in_flight = sum(stream.ledger.in_flight for stream in self._streams.values())
        enlisted = len(self._children.wanted("writer"))
        if in_flight <= 2 * enlisted or enlisted == self._max_writers:
            return []
        self._children.want(Child("writer", enlisted))
        return [*self._children.start_due(now)]

    def is_busy(self, writer: Child) -> bool:
        """Whether the writer has work, so that silence means that it hangs."""
        holds_slab = any(slab.holder == writer for slab in self._grants.slabs.values())
        segments = (each for stream in self._streams.values() for each in stream.ledger.segments.values())
        at_work = (Phase.CUT, Phase.PUBLISHING)
        return holds_slab or any(each.writer == writer.index and each.phase in at_work for each in segments)

    def written(self, stream: Stream, answer: Written) -> list[Decision]:
        """A write to the stream's record is durable. Answers arrive in the order of the writes."""
        if answer.kind != "intent":
            stream.written_seq = stream.written_seq if answer.seq is None else answer.seq
            return []
        if answer.generation != stream.generation:
            return []
        assert answer.seq is not None
        stream.durable_seq = stream.written_seq
        return self.apply(stream, stream.ledger.intent_durable(answer.seq))

    def apply(self, stream: Stream, effects: Iterable[Effect]) -> list[Decision]:
        """The ledger's effects as decisions."""
        decisions: list[Decision] = []
        name, generation = stream.name, stream.generation
        for effect in effects:
            match effect:
                case WriteIntent(intent):
                    change = records.intended(intent, self._schemas.grown_for(stream, intent))
                    decisions.append(Write(name, generation, change, "intent", intent.seq))
                case PublishSegment(segment):
                    publish = Publish(name, generation, segment.seq)
                    decisions.append(Send(Child("writer", segment.writer), publish))
                case WriteCommit():
                    decisions += self._commit(stream, effect)
        return decisions

    def _commit(self, stream: Stream, commit: WriteCommit) -> list[Decision]:
        stream.failures.succeeded()
        stream.trouble = None
        writers = self._children.ready("writer") if commit.seqs else []
        for child in writers if stream.reader is None else [stream.reader, *writers]:
            self._children.made_progress(child)
        stream.counters.events_committed += commit.rows
        stream.counters.segments += len(commit.seqs)
        if stream.is_of_backfill:
            self._splits.committed(stream, commit.rows)
        total = stream.record.rows + stream.counters.events_committed
        change = records.committed(commit, total)
        decisions: list[Decision] = [Write(stream.name, stream.generation, change, "commit", commit.seq)]
        if commit.seqs:
            fields = {"stream": stream.name, "seq": commit.seq, "rows": commit.rows}
            decisions.append(Log(stream.log_level, "committed", fields))
        return decisions + self._replacements.committed(stream, commit.replaced)


def _replaced_up_to(stream: Stream, seq: int) -> tuple[Replaced, ...]:
    """The collections that segments up to this one, committed or in flight, replace, if not yet loaded."""
    times = dict(stream.replaced)
    for number, segment in stream.ledger.segments.items():
        if number <= seq and segment.intent is not None:
            times |= {each.namespace: each.time for each in segment.intent.replaced}
    return tuple(Replaced(namespace, time) for namespace, time in sorted(times.items()))
