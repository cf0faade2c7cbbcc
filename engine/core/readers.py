"""Which reader reads what, and from where.

A change stream has a reader of its own; splits and marks share a pool. A stream is assigned once its lease is
held, the lake has been surveyed, its reader is ready, and the delay after a failure is over.

State: which reader has which stream; the one cluster time that all streams are read up to, if there is one. Owner:
the coordinator.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

from msgspec.structs import replace

from engine.core import records
from engine.core.actions import Child, Log, ReadState, Send, Write
from engine.core.children import Children
from engine.core.decisions import Decision, End
from engine.core.lifecycle import Stage
from engine.core.messages import Assign, ReaderReady, Started
from engine.core.position import token_data
from engine.core.stream import Settings, Stream
from engine.errors import ConfigError


class Readers:
    """The readers of an engine.

    Args:
        own: the reader of each change stream.
        pool: the readers of splits.

    Attributes:
        deployment: the name of the deployment, once a reader has asked for it.
        until: the cluster time that all streams are read up to; None for no end.
        common_end: the same, once no other engine can move a stream past it.
    """

    def __init__(
        self,
        settings: Settings,
        streams: Mapping[str, Stream],
        children: Children,
        own: Mapping[Child, Stream],
        pool: Sequence[Child],
    ) -> None:
        self._settings = settings
        self._streams = streams
        self._children = children
        self._by_reader: dict[Child, Stream] = dict(own)
        self._pool = pool
        self._generations = itertools.count(1)
        self.deployment: str | None = None
        self.until: int | None = None
        self.common_end: int | None = None

    def stream_of(self, reader: Child) -> Stream | None:
        """The stream that the reader reads, or will read as soon as it can."""
        return self._by_reader.get(reader)

    def assigned(self) -> Iterable[tuple[Child, Stream]]:
        """The readers that currently have a stream."""
        return ((reader, stream) for reader, stream in self._by_reader.items() if stream.is_assigned)

    def became_ready(self, message: ReaderReady) -> None:
        """A reader has reached the server."""
        self.deployment = message.deployment
        if (self._settings.until_caught_up or self._settings.common_end) and self.until is None:
            self.until = message.server_time

    def free(self, stream: Stream) -> None:
        """Free the reader of a split or mark; a change stream keeps its own."""
        if stream.is_of_backfill and stream.reader is not None:
            del self._by_reader[stream.reader]
            stream.reader = None

    def next_generation(self, stream: Stream) -> int:
        """The number of the stream's next start; readers tell splits apart by it, so no two splits share one."""
        return next(self._generations) if stream.is_of_backfill else stream.generation + 1

    def assign_ready(self, now: float) -> list[Decision]:
        """Assign every stream that is ready and has a reader; its slabs wait for a writer."""
        if self._settings.common_end and self.common_end is None and not self._choose_end():
            return []
        decisions: list[Decision] = []
        for stream in self._streams.values():
            if stream.stage is not Stage.READY or now < stream.failures.retry_at:
                continue
            if (reader := self._reader_for(stream)) is not None:
                decisions += self._assign(stream, reader)
        return decisions

    def _choose_end(self) -> bool:
        """Fix the common end, once every stream is ours: from then on, no other engine moves one past it."""
        if self.until is None or not all(stream.holds_lease for stream in self._streams.values()):
            return False
        times = [each.ledger.committed.time for each in self._streams.values() if each.ledger.committed]
        self.until = self.common_end = max([self.until, *times])
        return True

    def _reader_for(self, stream: Stream) -> Child | None:
        """A ready reader for the stream; None if there is none now."""
        if not stream.is_of_backfill:
            assert stream.reader is not None
            return stream.reader if self._children[stream.reader].ready else None
        free = (child for child in self._pool if child not in self._by_reader and self._children[child].ready)
        return next(free, None)

    def _assign(self, stream: Stream, reader: Child) -> list[Decision]:
        record, ledger = stream.record, stream.ledger
        if record.deployment and record.deployment != self.deployment:
            cause = f"its state is from {record.deployment!r}, and this is {self.deployment!r}"
            remedy = "Use another state.prefix and another sink.url for another deployment."
            return [End(ConfigError(f"resume the stream {stream.name}", cause, remedy), 2)]
        decisions: list[Decision] = []
        if stream.is_of_backfill:
            stream.reader, stream.generation = reader, self.next_generation(stream)
            self._by_reader[reader] = stream
        replay = ledger.restart()
        old_spec = record.spec if stream.selection_changed and replay else None
        if stream.selection_changed and not replay:
            decisions += self._adopt_selection(stream)
        elif record.spec is not None and (record.sink != self._settings.sink or not record.deployment):
            change = records.begin(stream.spec, self._settings.sink, self.deployment, None)
            decisions.append(Write(stream.name, stream.generation, change, "begin"))
        assign = Assign(
            spec=old_spec or stream.spec,
            generation=stream.generation,
            start=ledger.committed,
            start_at=stream.start_at,
            next_seq=None if ledger.is_new else ledger.committed_seq + 1,
            replay=replay,
            until=None if stream.is_of_backfill else self.until,
            replay_only=old_spec is not None,
            epoch=stream.epoch,
        )
        stream.life.on("assigned")
        stream.ended_at = None
        at = ledger.committed
        fields = {"stream": stream.name, "next_seq": assign.next_seq or "", "replay": len(replay)}
        if not stream.is_of_backfill:
            fields["from"] = stream.start_at if at is None else token_data(at.token) or at.time
        if old_spec:
            fields["selection"] = "previous, to finish its segments"
        return [*decisions, Log(stream.log_level, "stream assigned", fields), Send(reader, assign)]

    def _adopt_selection(self, stream: Stream) -> list[Decision]:
        """The stream's selection has changed, and nothing of the previous one is left to replay.

        The server may not find the committed token among the events that are now selected, so the stream starts at
        the token's time, and the reader skips everything up to the token.
        """
        position = stream.ledger.committed
        if position is not None and position.token:
            position = stream.ledger.committed = replace(position, exact=False)
        stream.record = replace(stream.record, spec=stream.spec)
        change = records.begin(stream.spec, self._settings.sink, self.deployment, position)
        log = Log("info", "selection changed", {"stream": stream.name})
        return [Write(stream.name, stream.generation, change, "begin"), log]

    def started(self, stream: Stream, message: Started) -> list[Decision]:
        """The stream is open; if it had no position, it has one from now on."""
        stream.life.on("opened")
        stream.has_been_read = True
        if message.start is None:
            return []
        stream.history_lost = False
        stream.ledger.begin(message.start)
        begin = records.begin(stream.spec, self._settings.sink, self.deployment, message.start)
        dropped = tuple(map(records.intent_field, stream.dropped))
        stream.dropped = ()
        seq = stream.ledger.committed_seq
        change = records.Change(begin.put | {"seq": str(seq)}, (*begin.remove, *dropped))
        write = Write(stream.name, stream.generation, change, "begin", seq)
        is_first = stream.record.position is None and not stream.is_of_backfill
        return [write, ReadState(stream.name)] if is_first else [write]
