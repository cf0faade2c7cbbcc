"""The supervisor's mind: every decision of a running engine, without any of its processes.

State: the streams with their ledgers, the splits that wait, the children, the slabs. Owner: the supervisor,
which calls one method per thing that happened and performs the actions that come back, in order.

A stream's life: *waiting* for its lease; *running*, with a reader that is assigned to it; *finished*, all it
had to do is committed; or *failed*, with an error that the user must see to. Whatever goes wrong with a
process or a segment has one answer: the stream is started over at its committed position, under a new
generation, and its outstanding intents are replayed to the same keys. A stream that fails too often in a row, or
by what will not pass, stops alone; the engine ends when no other is left.

A split of a backfill is a stream with an end. A change stream has a reader of its own; splits share a pool of
readers, and there are streams for as many of them as these can read. Splits wait until every change stream is
being read from a position that is durable: what is read of the collections is then never older than what the
streams bring.
"""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from engine.core import records
from engine.core.actions import (
    Acquire,
    Action,
    Child,
    Exit,
    GrowSchema,
    Log,
    Release,
    Renew,
    Send,
    Write,
)
from engine.core.backfill import Progress, is_end
from engine.core.children import Children
from engine.core.grants import Grants
from engine.core.handover import overlap
from engine.core.ledger import Effect, Ledger, PublishSegment, WriteCommit, WriteIntent
from engine.core.messages import (
    Abandon,
    Assign,
    Batch,
    BatchReady,
    CutNow,
    Failed,
    Finish,
    Finished,
    FlushBuffers,
    FromChild,
    Heartbeat,
    Idle,
    Intent,
    Publish,
    Published,
    ReaderReady,
    Replaced,
    SchemaGiven,
    SchemaWanted,
    Seal,
    Sealed,
    SegmentCut,
    SlabFreed,
    SlabRequest,
    Started,
    Stop,
    StreamSpec,
    Survey,
    Surveyed,
    Unassign,
    WriterReady,
)
from engine.core.naming import FORMER_DIRECTORIES, directories_of, number_in
from engine.core.position import Position, token_data
from engine.core.problems import BRIEF_S, UNANSWERED_S, Problem, Problems
from engine.core.records import StreamRecord
from engine.core.rescues import Rescues
from engine.core.restarts import Failures
from engine.core.schema import CollectionSchema
from engine.core.stream import Counters, Settings, Stream, StreamState
from engine.errors import ConfigError, FatalError, HeadraceError, StateLostError, error_of_kind

MAX_SLABS = 64
MAX_SEGMENTS_PER_STREAM = 4
SQUEEZE_EVERY_S = 2.0
SQUEEZE_ABOVE = 0.85
SQUEEZE_TOLD_EVERY_S = 60.0
LOOK_EVERY_S = 0.5


class Coordinator:
    """Decides; see the module's docstring.

    State beside the streams: ``until``, the one cluster time that all streams are read up to (0: for ever);
    ``lost``, the stream whose loss of history has ended it; and ``reloads``, whether it has ended so that
    collections with other content are loaded again.

    Args:
        specs: the change streams, each with a reader of its own.
        rng: for the jitter of delays.
    """

    def __init__(self, settings: Settings, specs: Sequence[StreamSpec], rng: random.Random) -> None:
        self.settings = settings
        self._rng = rng
        readers = [Child("reader", number) for number in range(len(specs) + settings.pool)]
        self._by_reader: dict[Child, Stream] = {}
        self.streams: dict[str, Stream] = {}
        for reader, spec in zip(readers, specs, strict=False):
            self.streams[spec.stream] = self._by_reader[reader] = self._new_stream(spec, reader)
        self._pool = readers[len(specs) :]
        self._splits: deque[StreamSpec] = deque()
        self._splits_stopped: dict[str, int] = {}  # by collection, since something of it was committed
        self._collections_stopped: set[str] = set()  # since something of any was
        self._generations = itertools.count(1)
        self.progress: dict[str, Progress] = {}
        self._anew = set(settings.lost)
        self.lost: frozenset[str] = frozenset()
        self.reloads = False
        writers = [Child("writer", number) for number in range(settings.writers)]
        self.children = Children([*readers, *writers], settings.retry, settings.hang_timeout_s, rng)
        self.grants = Grants(settings.arena_size, MAX_SLABS)
        self._waiting_for_schema: set[Child] = set()
        self.rescues = Rescues()
        self._schemas: dict[str, int] = {}  # the versions that the store has answered
        self._renew_at = 0.0
        self._ticked_at = 0.0
        self._squeezed_at = -SQUEEZE_EVERY_S
        self._squeeze_told_at = -SQUEEZE_TOLD_EVERY_S
        self._deployment = ""
        self.until = 0
        self._end_chosen = False
        self.draining = False
        self._drain_until = 0.0
        self._exiting: Exit | None = None
        self._has_run = False
        self._problems = Problems()
        self._store_problem: Problem | None = None
        self._looked_at = -LOOK_EVERY_S
        self._sink_seen = False  # a missing bucket must be noticed even when there is nothing to write

    def _new_stream(self, spec: StreamSpec, reader: Child | None) -> Stream:
        failures = Failures(self.settings.retry, self._rng)
        return Stream(spec, reader, failures, self.settings.start_at, Ledger(), Counters())

    # --- what happens ------------------------------------------------------------------------------------

    def load(self, splits: Iterable[StreamSpec], progress: Mapping[str, Progress]) -> None:
        """Give it splits to read.

        Args:
            splits: what is left to read of backfills, in order.
            progress: of each collection's backfill, by namespace, as it stood before; kept up to date here.
        """
        self._splits.extend(splits)
        self.progress |= progress

    def start(self, now: float) -> list[Action]:
        """The engine starts: all readers, and one writer; more writers when there is work for them.

        Leases are asked for with the next ``tick``.
        """
        self._ticked_at = now
        for reader in (*self._by_reader, *self._pool):
            self.children.want(reader)
        self.children.want(Child("writer", 0))
        return self.children.start_due(now)

    def tick(self, now: float) -> list[Action]:
        """Some time has passed; call it every second or so."""
        actions: list[Action] = []
        if now - self._ticked_at > max(5.0, self.settings.hang_timeout_s / 4):
            self.children.forgive_silence(now)
            fields = {"for_s": round(now - self._ticked_at, 1)}
            actions.append(Log("warning", "this process was paused", fields))
        self._ticked_at = now
        actions += self.children.start_due(now)
        actions += self._ask_for_leases(now)
        if now >= self._renew_at:
            self._renew_at = now + self.settings.lease_ttl_s / 3
            held = tuple(name for name, stream in self.streams.items() if stream.lease == "held")
            actions += [Renew(held)] if held else []
        actions += self.children.hung(self._is_busy, now)
        if self.draining and now > self._drain_until:
            actions += self._drain_failed()
        return [*self._note_problems(now), *self._settle(actions, now)]

    def from_child(self, child: Child, message: FromChild, now: float) -> list[Action]:
        """A message from a child."""
        if not self.children[child].alive:
            return []  # its exit has been dealt with; what it still said is void
        match message:
            case Heartbeat():
                self.children.beat(child, message, now)
                return []
            case WriterReady():
                self.children.became_ready(child, now)
                self._sink_seen = True
                actions: list[Action] = []
            case Failed():
                actions = self._on_failed(child, message, now)
            case SlabFreed():
                self.grants.free(message.offset)
                actions = []
            case Sealed() | Published() | Surveyed():
                actions = self._from_writer(message, now)
            case _:
                actions = self._from_reader(child, message, now)
        return self._settle(actions, now)

    def child_exited(
        self, child: Child, code: int | None, now: float, *, out_of_memory: bool = False
    ) -> list[Action]:
        """A child process is dead and its messages have all been handed in."""
        actions = self.children.exited(child, code, now, out_of_memory=out_of_memory)
        self.grants.reclaim(child)
        self._waiting_for_schema.discard(child)
        hit = [stream for stream in self.streams.values() if self._is_at_work(child, stream)]
        for stream in hit:
            stream.failures.failed(now)
            actions += self._start_over(stream)
        return self._settle(actions + self._judge_death(child, hit), now)

    def _is_at_work(self, child: Child, stream: Stream) -> bool:
        """Whether the child reads the stream, looks at the lake for it, or builds a segment of it."""
        if child.role == "reader":
            return stream.assigned and stream.reader == child
        builds = any(each.writer == child.index for each in stream.ledger.segments.values())
        return builds or stream.surveyor == child

    def _judge_death(self, child: Child, hit: Sequence[Stream]) -> list[Action]:
        """What stops when the child has died too often in a row.

        Other streams' commits forgive the child, not the stream that it dies of. Which one that is, nobody knows:
        one stops at a time, and the others have as many attempts again.
        """
        if self._exiting is not None:
            return []
        worst = max(hit, key=lambda stream: stream.failures.count, default=None)
        error = self.children.despair_of(child)
        if worst is not None and (worst.failures.exhausted or error is not None):
            return self._blame(worst, child, hit)
        if error is None:
            return []
        own = self._by_reader.get(child)
        if own is None or own.spec.is_split:
            return self._exit(1, error)
        self.children.end(child)
        return [] if own.is_over else self._stop_stream(own, error)

    def _blame(self, worst: Stream, child: Child, hit: Sequence[Stream]) -> list[Action]:
        """Stop the stream that the child has died at most often; the others that it was at begin to count anew."""
        ended, remedy = self.children.last_end(child)
        count = max(worst.failures.count, self.children[child].failures.count)
        cause = f"a {child.role} died {count} times in a row before anything was committed, {ended}"
        for stream in hit:
            stream.failures.succeeded()
        self.children.forgive(child)
        return self._stop_stream(worst, FatalError(f"run the stream {worst.name}", cause, remedy))

    def acquired(self, name: str, fields: dict[str, str], now: float) -> list[Action]:
        """The lease is ours, and this is the record as it stood when it became so."""
        stream = self.streams[name]
        stream.lease, stream.held_by = "held", ""
        if stream.is_over:  # it stopped while its lease was asked for
            return self._settle(self._give_back(stream), now)
        record = records.read_record(fields)
        if (refusal := self._refusal(stream, record)) is not None:
            return self._exit(self._code_of(refusal), refusal)
        # ``rows`` as it was before this engine: what it has committed itself is counted apart.
        rows_before = max(0, record.rows - stream.counters.events_committed)
        stream.record = msgspec.structs.replace(record, rows=rows_before)
        stream.surveyed, stream.surveyor = stream.spec.is_split, None
        stream.floors = {}
        stream.schemas = dict(record.schemas)
        stream.durable_seq = None if record.position is None else record.seq
        stream.ledger = Ledger(record.position, record.seq, record.intents)
        actions = self._take_replaced(stream, record.replaced)
        beyond, stream.beyond = stream.beyond, ""
        if beyond and (number_in(beyond, name) or 0) > stream.ledger.last_known:
            return self._settle(self._stop_stream(stream, _older_than_the_lake(stream, beyond)), now)
        if stream.spec.is_split and is_end(record.position):  # by another engine, meanwhile
            return self._settle(self._close_split(stream, record.rows), now)
        if record.intents and record.sink != self.settings.sink:
            cause = (
                f"{len(record.intents)} segment(s) may have been published to {record.sink}, "
                f"and the sink is now {self.settings.sink}"
            )
            remedy = "Start once more with the former [sink] until it has caught up, then change it."
            return self._exit(2, ConfigError(f"resume the stream {name}", cause, remedy))
        if name in self._anew and record.position is not None:
            self._begin_anew(stream)
        if stream.replaced and self.settings.on_replaced == "fail":
            actions += self._stop_stream(stream, _replaced(stream))
        return self._settle(actions, now)

    def _take_replaced(self, stream: Stream, replaced: Mapping[str, int]) -> list[Action]:
        """What the record tells of replaced collections; those that have been loaded since are done with."""
        loaded = self.settings.loaded
        done = [each for each, time in replaced.items() if each in loaded and time <= loaded[each]]
        stream.replaced = {each: time for each, time in replaced.items() if each not in done}
        return [self._write(stream, records.loaded(done))] if done else []

    def _refusal(self, stream: Stream, record: StreamRecord) -> HeadraceError | None:
        """Why the stream must not go on from this record."""
        operation, durable = f"resume the stream {stream.name}", stream.durable_seq
        if record.closed:
            cause = "another configuration has taken over what this stream covered"
            remedy = "Start with that configuration; to begin anew, use another state.prefix and sink.url."
            return ConfigError(operation, cause, remedy)
        if record.spec is not None and record.spec.coverage != stream.spec.coverage:
            cause = "its record in the state store is of a stream that covers something else"
            remedy = "Another engine keeps its state there: use another state.prefix, and another sink.url."
            return ConfigError(operation, cause, remedy)
        if durable is not None and (record.position is None or record.seq < durable):
            cause = f"the state store has lost its record: segment {durable} was committed"
            return StateLostError(operation, cause)
        passed = self._end_chosen and record.position is not None and record.position.time > self.until
        if self.settings.common_end and passed:
            cause = "another engine has moved it past the common end of a handover"
            return FatalError(operation, cause, "Stop the other engine, then start again.")
        return None

    def held_elsewhere(self, name: str, holder: str, expires_in_s: float, now: float) -> list[Action]:
        """Another engine has the lease; ask again later."""
        stream = self.streams[name]
        stream.lease, stream.beyond = "none", ""
        stream.acquire_at = now + min(max(expires_in_s, 0.1), self.settings.lease_ttl_s / 3)
        if stream.held_by == holder:
            return self._settle([], now)
        stream.held_by = holder
        fields = {"stream": name, "holder": holder, "expires_in_s": round(expires_in_s, 1)}
        waiting = Log("warning", "another engine runs this stream; waiting for its lease", fields)
        return self._settle([waiting], now)

    def lease_lost(self, name: str, now: float) -> list[Action]:
        """The store refused a write or a renewal: somebody else owns the stream now."""
        stream = self.streams.get(name)
        if stream is None or stream.lease != "held":
            return []
        stream.lease, stream.acquire_at = "none", now + self.settings.lease_ttl_s / 3
        what = "lost the lease: another engine has taken this stream over; standing by"
        return self._settle([Log("error", what, {"stream": name}), *self._start_over(stream)], now)

    def stored(self, name: str, generation: int, seq: int, now: float) -> list[Action]:
        """The intent of segment ``seq`` is durable."""
        stream = self.streams[name]
        if generation != stream.generation:
            return []
        stream.durable_seq = stream.floors.pop(seq)
        return self._settle(self._apply(stream, stream.ledger.intent_durable(seq), now), now)

    def schema_stored(
        self, reader: Child, database: str, collection: str, schema: CollectionSchema
    ) -> list[Action]:
        """A collection's schema as it stands in the store."""
        self._schemas[records.schema_document(database, collection)] = schema.version
        self._waiting_for_schema.discard(reader)
        if not self.children[reader].ready:
            return []
        return [Send(reader, SchemaGiven(database, collection, schema))]

    def store_failed(self, error: HeadraceError) -> list[Action]:
        """The state store stayed away for longer than the retry budget, or refuses us."""
        return self._exit(self._code_of(error), error)

    def store_waits(self, unanswered_s: float, error: str, now: float) -> None:
        """How long the state store has owed an answer, and why the latest attempt failed, if it did."""
        if error:
            self._store_problem = Problem.after(self._store_problem, error, now)
        elif unanswered_s >= UNANSWERED_S:
            self._store_problem = Problem("the state store has not answered", now - unanswered_s, lasts=True)
        else:
            self._store_problem = None

    def state_of(self, stream: Stream) -> StreamState:
        """What the stream is at, in a word."""
        if stream.status in ("failed", "finished"):
            return stream.status
        if stream.problem is not None:
            return "stalled"
        if stream.lease != "held" and stream.held_by:
            return "standby" if self._can_take_over(stream) else "starting"
        return "reading" if stream.reading else "starting"

    def _can_take_over(self, stream: Stream) -> bool:
        """Whether all that a stream needs is there, but for its lease."""
        has_reader = stream.reader is None or self.children[stream.reader].ready
        return has_reader and bool(self.children.ready("writer"))

    def _note_problems(self, now: float) -> list[Action]:
        if now - self._looked_at < LOOK_EVERY_S or self._exiting is not None:
            return []
        self._looked_at = now
        for stream in self.streams.values():
            stream.problem = None if stream.is_over else self._problem_of(stream, now)
        return [*self._problems.tell({name: each.problem for name, each in self.streams.items()}, now)]

    def _problem_of(self, stream: Stream, now: float) -> Problem | None:
        """The first of what is in the stream's way: the others may well have come of it."""
        at_work = {Child("writer", each.writer) for each in stream.ledger.segments.values()}
        at_work |= {each for each in (stream.reader, stream.surveyor) if each is not None}
        if not self.children.ready("writer"):
            at_work.add(Child("writer", 0))
        found = [self._store_problem, stream.trouble, *(self.children.problem(each, now) for each in at_work)]
        lasting = (each for each in found if each is not None and now - each.since >= BRIEF_S)
        return min(lasting, key=lambda each: each.since, default=None)

    def shut_down(self, now: float) -> list[Action]:
        """Drain: publish and commit what has been read, then end."""
        if self.draining:
            return []
        self.draining = True
        self._drain_until = now + self.settings.drain_timeout_s
        actions: list[Action] = [Log("info", "draining", {"timeout_s": self.settings.drain_timeout_s})]
        for stream in self.streams.values():
            if stream.assigned and stream.spec.whole and not stream.reading_done:
                actions += self._start_over(stream)  # it cannot be cut: it is read anew next time
            elif stream.assigned and stream.reader is not None:
                actions.append(Send(stream.reader, Finish()))
        return self._settle(actions, now)

    def memory_used(self, used: int, now: float) -> list[Action]:
        """The measured size of the process tree, in bytes: nearing the limit, flush early."""
        limit = self.settings.memory_limit
        if not limit or used < SQUEEZE_ABOVE * limit or now - self._squeezed_at < SQUEEZE_EVERY_S:
            return []
        self._squeezed_at = now
        actions: list[Action] = []
        if now - self._squeeze_told_at >= SQUEEZE_TOLD_EVERY_S:
            self._squeeze_told_at = now
            fields = {"used_bytes": used, "limit_bytes": limit}
            actions.append(Log("warning", "memory is short; flushing early", fields))
        actions += [Send(writer, FlushBuffers()) for writer in self.children.ready("writer")]
        actions += [
            Send(reader, CutNow(stream.generation))
            for reader, stream in self._by_reader.items()
            if stream.assigned
        ]
        return actions

    # --- readers -----------------------------------------------------------------------------------------

    def _from_reader(self, reader: Child, message: FromChild, now: float) -> list[Action]:
        stream = self._by_reader.get(reader)
        match message:
            case ReaderReady():
                self.children.became_ready(reader, now)
                self._deployment = message.deployment
                if (self.settings.until_caught_up or self.settings.common_end) and not self.until:
                    self.until = message.server_time
                return []
            case SchemaWanted():
                self._waiting_for_schema.add(reader)
                database, collection = message.database, message.collection
                least = self._least_schema(records.schema_document(database, collection))
                return [GrowSchema(reader, database, collection, message.fields, least)]
            case BatchReady() if stream is None or message.generation != stream.generation:
                self.grants.free(message.offset)
                return []
            case Started() | SlabRequest() | BatchReady() | SegmentCut() | Idle() | Finished():
                if stream is not None and message.generation == stream.generation:
                    return self._from_current_reader(reader, stream, message, now)
                return []
        raise AssertionError(message)

    def _from_current_reader(
        self,
        reader: Child,
        stream: Stream,
        message: Started | SlabRequest | BatchReady | SegmentCut | Idle | Finished,
        now: float,
    ) -> list[Action]:
        match message:
            case Started():
                return self._on_started(stream, message)
            case SlabRequest():
                self.grants.ask(reader, message)
                return []
            case BatchReady():
                return self._on_batch(stream, message)
            case SegmentCut():
                return self._on_cut(stream, message)
            case Idle():
                self._has_run = self._has_run or self._sink_seen
                return self._apply(stream, stream.ledger.idle(message.position), now)
            case Finished():
                stream.reading_done, stream.ended_at = True, message.position
                self._free_reader(stream)
                return []

    def _on_started(self, stream: Stream, message: Started) -> list[Action]:
        """The stream is open; one that had no position has one now, and keeps it from here on."""
        stream.reading = stream.has_been_read = True
        if message.start is None:
            return []
        self._anew.discard(stream.name)
        stream.ledger.begin(message.start)
        begin = records.begin(*self._identity(stream), message.start)
        dropped = tuple(map(records.intent_field, stream.dropped))
        stream.dropped = ()
        put = begin.put | {"seq": str(stream.ledger.committed_seq)}
        return [self._write(stream, records.Change(put, (*begin.remove, *dropped)))]

    def _on_batch(self, stream: Stream, message: BatchReady) -> list[Action]:
        segment = stream.ledger.segments.get(message.seq)
        writer = Child("writer", segment.writer) if segment else self._choose_writer()
        if writer is None:
            self.grants.free(message.offset)
            return self._start_over(stream)
        self._has_run = True
        stream.ledger.segment(message.seq, writer.index)
        self.grants.hand_over(message.offset, writer)
        stream.counters.events_read += message.rows
        stream.counters.bytes_read += message.raw_bytes
        stream.counters.rescued_values += self.rescues.add(message.rescued)
        name, generation = stream.name, stream.generation
        replayed = stream.ledger.intents.get(message.seq)
        keys = [each.key for each in replayed.objects] if replayed else []
        former = directories_of(keys) == FORMER_DIRECTORIES
        return [Send(writer, Batch(name, generation, message.seq, message.offset, message.size, former))]

    def _on_cut(self, stream: Stream, message: SegmentCut) -> list[Action]:
        intent = message.intent
        segment = stream.ledger.segments.get(intent.seq)
        writer = Child("writer", segment.writer) if segment else self._choose_writer()
        if writer is None:
            return self._start_over(stream)
        stream.ledger.segment(intent.seq, writer.index)
        stream.ledger.cut(intent)
        fields = {"stream": stream.name, "seq": intent.seq, "rows": intent.rows, "reason": message.reason}
        log = Log("debug", "segment cut", fields)
        return [log, Send(writer, Seal(stream.name, stream.generation, intent))]

    def _choose_writer(self) -> Child | None:
        """The ready writer with the fewest segments in flight."""
        load = {writer.index: 0 for writer in self.children.ready("writer")}
        for stream in self.streams.values():
            for segment in stream.ledger.segments.values():
                if segment.writer in load:
                    load[segment.writer] += 1
        return Child("writer", min(load, key=lambda index: (load[index], index))) if load else None

    # --- writers and the store ---------------------------------------------------------------------------

    def _from_writer(self, message: Sealed | Published | Surveyed, now: float) -> list[Action]:
        stream = self.streams.get(message.stream)
        if stream is None or message.generation != stream.generation:
            return []
        if isinstance(message, Surveyed):
            return self._on_surveyed(stream, message.beyond)
        if isinstance(message, Published):
            return self._apply(stream, stream.ledger.published(message.seq), now)
        counters = stream.counters
        counters.bytes_landed += message.size
        counters.objects += len(message.objects)
        counters.dead_letters += message.dead_letters
        return self._apply(stream, stream.ledger.sealed(message.seq, message.objects), now)

    def _survey_ready(self, now: float) -> list[Action]:
        """Have the lake looked at for every stream that has just been acquired: is the state older than it?"""
        writers = self.children.ready("writer")
        actions: list[Action] = []
        for stream in self.streams.values():
            waits = stream.lease == "held" and not stream.surveyed and stream.surveyor is None
            is_due = now >= stream.failures.retry_at and not stream.is_over and not self.draining
            if writers and waits and is_due:
                at = stream.ledger.committed
                is_elsewhere = stream.record.sink != self.settings.sink  # or laid out otherwise
                since = 0 if at is None or is_elsewhere else at.time
                asked = Survey(stream.spec, stream.generation, since, stream.ledger.last_known)
                stream.surveyor = writers[len(actions) % len(writers)]
                actions.append(Send(stream.surveyor, asked))
        return actions

    def _on_surveyed(self, stream: Stream, beyond: str) -> list[Action]:
        """The lake was looked at; an object too many may also be of an engine that has the stream meanwhile.

        So the record is read once more: whatever was published before that has left a trace in it.
        """
        stream.surveyed, stream.surveyor = not beyond, None
        if not beyond:
            return []
        stream.beyond, stream.lease = beyond, "asked"
        return [Acquire(stream.name, stream.spec.namespace)]

    def _apply(self, stream: Stream, effects: Iterable[Effect], now: float) -> list[Action]:
        """The ledger's effects as actions."""
        actions: list[Action] = []
        name, generation = stream.name, stream.generation
        for effect in effects:
            match effect:
                case WriteIntent(intent):
                    stream.floors[intent.seq] = stream.ledger.committed_seq
                    change = records.intended(intent, self._schemas_of(stream, intent))
                    actions.append(Write(name, generation, change, intent.seq))
                case PublishSegment(segment):
                    publish = Publish(name, generation, segment.seq)
                    actions.append(Send(Child("writer", segment.writer), publish))
                case WriteCommit():
                    actions += self._on_commit(stream, effect, now)
        return actions

    def _schemas_of(self, stream: Stream, intent: Intent) -> dict[str, int]:
        """What the record does not tell yet of the schemas that the segment's objects were written under."""
        names = {records.schema_document(each.database, each.collection) for each in intent.objects}
        known = {name: self._schemas[name] for name in sorted(names & self._schemas.keys())}
        grown = {name: version for name, version in known.items() if version > stream.schemas.get(name, 0)}
        stream.schemas |= grown
        return grown

    def _least_schema(self, name: str) -> int:
        """The version that the store is known to have of a schema."""
        told = (stream.schemas.get(name, 0) for stream in self.streams.values())
        return max(self._schemas.get(name, 0), *told, 0)

    def _on_commit(self, stream: Stream, commit: WriteCommit, now: float) -> list[Action]:
        stream.failures.succeeded()
        stream.trouble = None
        if stream.spec.is_split:
            self._splits_stopped.pop(stream.spec.namespace, None)
            self._collections_stopped.clear()
        writers = self.children.ready("writer") if commit.seqs else []
        for child in writers if stream.reader is None else [stream.reader, *writers]:
            self.children.got_somewhere(child)
        stream.committed_at = now
        stream.counters.events_committed += commit.rows
        stream.counters.segments += len(commit.seqs)
        self._count(stream, commit.rows)
        total = stream.record.rows + stream.counters.events_committed
        actions: list[Action] = [self._write(stream, records.committed(commit, total))]
        if commit.seqs:
            fields = {"stream": stream.name, "seq": commit.seq, "rows": commit.rows}
            actions.append(Log(stream.log_level, "committed", fields))
        return actions + self._on_replaced(stream, commit.replaced)

    def _on_replaced(self, stream: Stream, replaced: Iterable[Replaced]) -> list[Action]:
        """Collections of the stream have other content; the commit that has just left says so, too."""
        new = {each.namespace: each.time for each in replaced}
        if not new:
            return []
        stream.replaced |= new
        if self.settings.on_replaced == "fail":
            return self._stop_stream(stream, _replaced(stream))
        fields: dict[str, object] = {"stream": stream.name, "collections": sorted(new)}
        if self.settings.on_replaced == "reload":
            return [Log("warning", "collections were replaced; what they have now is to be loaded", fields)]
        fields["remedy"] = _replaced(stream).remedy
        return [Log("warning", "collections were replaced; what they have now is not loaded", fields)]

    def _reload_if_due(self, now: float) -> list[Action]:
        """End, so that replaced collections are loaded again by the next run; what is being loaded goes first.

        Streams that have an end come to it before: all that is replaced is then loaded together.
        """
        if self.settings.on_replaced != "reload" or now < self.settings.reload_from or self.draining:
            return []
        if self._exiting is not None or self._splits or any(each.spec.is_split for each in self.streams.values()):
            return []
        if self.settings.until_caught_up and not all(each.is_over for each in self.streams.values()):
            return []
        mine = (each for each in self._change_streams() if each.lease == "held" and each.error is None)
        owed = sorted({namespace for stream in mine for namespace in stream.replaced})
        if not owed:
            return []
        self.reloads = True
        fields = {"collections": owed}
        return [Log("info", "beginning again, with a load of replaced collections", fields), *self._exit(0, None)]

    def _write(self, stream: Stream, change: records.Change) -> Write:
        return Write(stream.name, stream.generation, change)

    def _identity(self, stream: Stream) -> tuple[StreamSpec, str, str]:
        return stream.spec, self.settings.sink, self._deployment

    # --- starting and starting over ----------------------------------------------------------------------

    def _ask_for_leases(self, now: float) -> list[Action]:
        actions: list[Action] = []
        for name, stream in self.streams.items():
            open_ = stream.status == "waiting" and not self.draining
            if open_ and stream.lease == "none" and now >= stream.acquire_at:
                stream.lease = "asked"
                actions.append(Acquire(name, stream.spec.namespace))
        return actions

    def _assign_ready(self, now: float) -> list[Action]:
        """Assign every stream whose lease and reader are there; its slabs wait for a writer."""
        actions: list[Action] = []
        if self.settings.common_end and not self._end_chosen and not self._choose_end():
            return []
        for stream in self.streams.values():
            if (
                stream.lease == "held"
                and stream.status in ("waiting", "running")
                and stream.surveyed
                and not stream.assigned
                and not self.draining
                and now >= stream.failures.retry_at
                and (reader := self._reader_for(stream)) is not None
            ):
                actions += self._assign(stream, reader)
        return actions

    def _reader_for(self, stream: Stream) -> Child | None:
        """A ready reader that the stream can have now."""
        if not stream.spec.is_split:
            assert stream.reader is not None
            return stream.reader if self.children[stream.reader].ready else None
        free = (child for child in self._pool if child not in self._by_reader and self.children[child].ready)
        return next(free, None)

    def _free_reader(self, stream: Stream) -> None:
        """A split needs its reader no more."""
        if stream.spec.is_split and stream.reader is not None:
            del self._by_reader[stream.reader]
            stream.reader = None

    def _open_splits(self) -> list[Action]:
        """Ask for the leases of as many splits as there are readers, and of one more for the first that is free.

        A split whose documents are still on their way to the lake counts a quarter: writers that cannot follow
        stop the reading.
        """
        if self.draining or not all(each.reading or each.is_over for each in self._change_streams()):
            return []
        splits = (each for each in self.streams.values() if each.spec.is_split)
        mine = [each for each in splits if not each.held_by and each.status != "failed"]
        weight = sum(0.25 if each.reading_done else 1.0 for each in mine)
        actions: list[Action] = []
        while weight <= len(self._pool) and (spec := self._next_split()) is not None:
            self.streams[spec.stream] = stream = self._new_stream(spec, None)
            stream.lease = "asked"
            actions.append(Acquire(spec.stream, spec.namespace))
            weight += 1.0
        return actions

    def _next_split(self) -> StreamSpec | None:
        """The first split that may be begun, and waits no more; a mark may when its plan has no other left."""
        for index, spec in enumerate(self._splits):
            if spec.closes and self._has_other_splits(spec):
                continue
            del self._splits[index]
            return spec
        return None

    def _has_other_splits(self, mark: StreamSpec) -> bool:
        """Whether another split of its plan waits, is being read, or has stopped."""
        others = itertools.chain(self._splits, (stream.spec for stream in self.streams.values()))
        return any(each.namespace == mark.namespace and not each.closes for each in others)

    def _close_split(self, stream: Stream, rows: int = 0) -> list[Action]:
        """All of the split is in the lake; ``rows`` of it by another engine."""
        self._count(stream, rows, splits=1)
        self._free_reader(stream)
        del self.streams[stream.name]
        return [Release((stream.name,)), *self._forget_replaced(stream.spec)]

    def _forget_replaced(self, mark: StreamSpec) -> list[Action]:
        """All of a collection has been loaded, if this is a mark: it was replaced before that."""
        actions: list[Action] = []
        for stream in self._change_streams():
            if stream.lease == "held" and 0 < stream.replaced.get(mark.namespace, 0) <= mark.closes:
                del stream.replaced[mark.namespace]
                actions.append(self._write(stream, records.loaded([mark.namespace])))
        return actions

    def _count(self, stream: Stream, rows: int, splits: int = 0) -> None:
        """So much more is in the lake of the backfill that the stream is a part of, if it is of one."""
        if (namespace := stream.spec.namespace) in self.progress:
            documents = 0 if stream.spec.closes else rows
            self.progress[namespace] = self.progress[namespace].plus(documents, splits)

    def _change_streams(self) -> list[Stream]:
        return [stream for stream in self.streams.values() if not stream.spec.is_split]

    def _choose_end(self) -> bool:
        """Fix the common end, once every stream is ours: no other engine moves one past it any more."""
        if not self.until or any(stream.lease != "held" for stream in self.streams.values()):
            return False
        times = [each.ledger.committed.time for each in self.streams.values() if each.ledger.committed]
        self.until = max([self.until, *times])
        self._end_chosen = True
        return True

    def _assign(self, stream: Stream, reader: Child) -> list[Action]:
        record, ledger = stream.record, stream.ledger
        if record.deployment and record.deployment != self._deployment:
            cause = f"its state is from {record.deployment!r}, and this is {self._deployment!r}"
            remedy = "Use another state.prefix and another sink.url for another deployment."
            return self._exit(2, ConfigError(f"resume the stream {stream.name}", cause, remedy))
        actions: list[Action] = []
        if stream.spec.is_split:
            stream.reader, stream.generation = reader, next(self._generations)
            self._by_reader[reader] = stream
        replay = ledger.restart()
        former = record.spec if stream.selection_changed and replay else None
        if stream.selection_changed and not replay:
            actions += self._adopt_selection(stream)
        elif record.spec is not None and record.sink != self.settings.sink:
            actions.append(self._write(stream, records.begin(*self._identity(stream), None)))
        assign = Assign(
            spec=former or stream.spec,
            generation=stream.generation,
            start=ledger.committed,
            start_at=stream.start_at,
            next_seq=0 if ledger.is_new else ledger.committed_seq + 1,
            replay=replay,
            until=0 if stream.spec.is_split else self.until,
            replay_only=former is not None,
        )
        stream.assigned, stream.reading_done, stream.ended_at = True, False, None
        stream.status = "running"
        at = ledger.committed
        fields = {"stream": stream.name, "next_seq": assign.next_seq or "", "replay": len(replay)}
        if not stream.spec.is_split:
            fields["from"] = stream.start_at if at is None else token_data(at.token) or at.time
        if former:
            fields["selection"] = "former, to finish its segments"
        return [*actions, Log(stream.log_level, "stream assigned", fields), Send(reader, assign)]

    def _adopt_selection(self, stream: Stream) -> list[Action]:
        """What the stream selects has changed, and nothing of the former selection is left to replay.

        The server need not find the committed token among the events that are selected now, so the stream
        starts at the token's time, and the reader leaves out what lies up to the token.
        """
        position = stream.ledger.committed
        if position is not None and position.token:
            position = Position(position.token, position.time, position.after_invalidate, exact=False)
            stream.ledger.committed = position
        stream.record = msgspec.structs.replace(stream.record, spec=stream.spec)
        change = records.begin(*self._identity(stream), position)
        return [self._write(stream, change), Log("info", "selection changed", {"stream": stream.name})]

    def _start_over(self, stream: Stream) -> list[Action]:
        """Drop what is in flight; the stream is assigned anew when everything it needs is there."""
        actions: list[Action] = []
        builders = {segment.writer for segment in stream.ledger.segments.values()}
        stream.generation = next(self._generations) if stream.spec.is_split else stream.generation + 1
        stream.ledger.restart()
        for writer in self.children.ready("writer"):
            if writer.index in builders:
                actions.append(Send(writer, Abandon(stream.name, stream.generation)))
        if stream.reader is not None:
            self.grants.withdraw(stream.reader)
            if stream.assigned and self.children[stream.reader].ready:
                actions.append(Send(stream.reader, Unassign()))
        self._free_reader(stream)
        if stream.assigned:
            stream.counters.restarts += 1
        stream.surveyor = None
        stream.assigned = stream.reading = stream.reading_done = False
        if stream.lease == "none" and stream.status == "running":
            stream.status = "waiting"
        return actions

    def _on_failed(self, child: Child, failed: Failed, now: float) -> list[Action]:
        """An error that a child could not deal with."""
        error = error_of_kind(failed.kind, failed.operation, failed.cause, failed.remedy)
        if not failed.stream:
            return self._on_process_failed(child, error)
        stream = self.streams.get(failed.stream)
        if stream is None or failed.generation != stream.generation:
            return []
        if error.kind == "stream_lost":
            return self._on_stream_lost(stream, error, now)
        # What is wrong with a configuration that has served is a server's state, or on its way to be mended.
        has_served = stream.has_been_read or (stream.spec.is_split and self._has_run)
        may_pass = error.kind == "transient" or (error.kind == "config" and has_served)
        if not may_pass:
            return self._stop_stream(stream, error)
        if not stream.failures.failed(now):
            remedy = error.remedy or "Start again when the cause is mended: nothing is lost."
            return self._stop_stream(stream, FatalError(error.operation, error.cause, remedy))
        stream.trouble = Problem.after(stream.trouble, str(error), now)
        delay_s = round(stream.failures.retry_at - now, 2)
        fields = {"stream": failed.stream, "error": str(error), "retry_in_s": delay_s}
        return [Log("warning", "stream failed; starting over", fields), *self._start_over(stream)]

    def _on_process_failed(self, child: Child, error: HeadraceError) -> list[Action]:
        """A process says why it ends."""
        has_served = bool(self._deployment) if child.role == "reader" else self._sink_seen
        if error.kind == "transient" or has_served:
            self.children[child].error = error
            return []
        return self._exit(self._code_of(error), error)

    def _stop_stream(self, stream: Stream, error: HeadraceError) -> list[Action]:
        """The stream needs a hand; the others go on."""
        stream.status, stream.error = "failed", error
        fields = {"stream": stream.name, "error": str(error)}
        stopped = Log("error", "stream stopped", fields)
        actions = [stopped, *self._start_over(stream), *self._give_back(stream)]
        if stream.spec.is_split:
            mark = [each for each in self._splits if each.closes and each.namespace == stream.spec.namespace]
            return actions + self._leave(mark) + self._judge_splits(stream.spec.namespace)
        if stream.ledger.committed is None:
            # It does not bring what comes behind a load of its collections: that is left, too.
            actions += self._leave(each for each in self._splits if overlap(each, stream.spec))
        return actions

    def _give_back(self, stream: Stream) -> list[Action]:
        """The stream's lease, if it is ours: another engine may have more luck with it."""
        if stream.lease != "held":
            return []
        stream.lease = "none"
        return [Release((stream.name,))]

    def _judge_splits(self, namespace: str) -> list[Action]:
        """A split has stopped; what stops as many as there are readers is nothing that the next would be spared.

        So the rest of its collection is left; and that of all collections, when so many of them had a split
        stopped with nothing committed between.
        """
        self._splits_stopped[namespace] = self._splits_stopped.get(namespace, 0) + 1
        self._collections_stopped.add(namespace)
        most = max(2, len(self._pool))
        if len(self._collections_stopped) >= most:
            return self._leave(self._splits)
        if self._splits_stopped[namespace] >= most:
            return self._leave(each for each in self._splits if each.namespace == namespace)
        return []

    def _leave(self, splits: Iterable[StreamSpec]) -> list[Action]:
        """These splits are for the next run."""
        left = {each.stream: each.namespace for each in splits}
        if not left:
            return []
        self._splits = deque(each for each in self._splits if each.stream not in left)
        fields = {"collections": sorted(set(left.values())), "splits_left": len(left)}
        return [Log("error", "splits left for the next run", fields)]

    def _on_stream_lost(self, stream: Stream, error: HeadraceError, now: float) -> list[Action]:
        # One that is lost again and again, with nothing captured between, is not healed by beginning anew.
        if self.settings.on_history_lost == "fail" or not stream.failures.failed(now):
            return self._stop_stream(stream, error)
        fields: dict[str, object] = {"stream": stream.name, "error": str(error)}
        if self.settings.on_history_lost == "snapshot":
            # It is planned before the stream has another position: a crash in between must not hide the gap.
            self.lost = frozenset({stream.name, *self._anew})
            what = "history lost; loading the collections again, and going on from now"
            return [Log("error", what, fields), *self._exit(1, error)]
        fields["intents_dropped"] = len(stream.ledger.intents)
        actions: list[Action] = [
            Log("error", "history lost; going on from now, what lies between is not captured", fields)
        ]
        actions += self._start_over(stream)
        self._begin_anew(stream)
        return actions

    def _begin_anew(self, stream: Stream) -> None:
        """From now, whatever was committed; its numbers go on."""
        stream.dropped = tuple(stream.ledger.intents)
        stream.ledger = Ledger(None, max(stream.dropped, default=stream.ledger.committed_seq))
        if stream.name not in self._anew:
            stream.start_at = "now"

    # --- finishing ---------------------------------------------------------------------------------------

    def _settle(self, actions: list[Action], now: float) -> list[Action]:
        """``actions``, and what has become possible or done with them."""
        if self._exiting is None:
            actions = actions + self._open_splits() + self._survey_ready(now) + self._assign_ready(now)
            actions += self._serve()
            actions += self._enlist_writers(now)
            for stream in list(self.streams.values()):
                actions += self._finish_stream_if_done(stream, now)
        actions = actions + self._reload_if_due(now)
        return actions + self._end_if_done()

    def _end_if_done(self) -> list[Action]:
        streams = self.streams.values()
        errors = [each.error for each in streams if each.error]
        left = bool(self._splits) and not self.draining
        done = not left and all(each.is_over for each in streams) and (self._sink_seen or self.draining)
        # A handover is of all streams, or void.
        hopeless = bool(errors) and (
            self.settings.common_end or (not left and all(each.error for each in streams))
        )
        if self._exiting is not None or not (done or hopeless):
            return []
        code = min(self._code_of(error) for error in errors) if hopeless else int(bool(errors))
        return self._exit(code, errors[0] if errors else None)

    def _enlist_writers(self, now: float) -> list[Action]:
        """Start another writer when the present ones have two segments each in flight and more wait.

        One that is built while another is uploaded is what a writer can do at once; a process more costs memory,
        and half a second of CPU for its imports.
        """
        in_flight = sum(stream.ledger.in_flight for stream in self.streams.values())
        enlisted = len(self.children.wanted("writer"))
        if in_flight <= 2 * enlisted or enlisted == self.settings.writers:
            return []
        self.children.want(Child("writer", enlisted))
        return self.children.start_due(now)

    def _finish_stream_if_done(self, stream: Stream, now: float) -> list[Action]:
        if self.draining and not stream.assigned and stream.status in ("waiting", "running"):
            stream.status = "finished"
            return []
        if not stream.assigned or not stream.reading_done or stream.ledger.segments:
            return []
        stream.assigned = stream.reading = False
        if stream.selection_changed and not self.draining:
            stream.generation += 1
            return self._assign_ready(now)
        stream.status = "finished"
        actions: list[Action] = []
        if stream.ended_at is not None and not stream.selection_changed:
            actions += self._apply(stream, stream.ledger.idle(stream.ended_at), now)
        fields = {"stream": stream.name, "events": stream.counters.events_committed}
        actions.append(Log(stream.log_level, "stream finished", fields))
        if stream.spec.is_split and is_end(stream.ledger.committed):
            actions += self._close_split(stream) + self._open_splits()
        return actions

    def _drain_failed(self) -> list[Action]:
        left = sum(each.ledger.in_flight for each in self.streams.values())
        cause = f"{left} segment(s) were not committed within shutdown.timeout"
        remedy = "Nothing is lost: they are replayed at the next start. Raise shutdown.timeout to let them end."
        return self._exit(1, FatalError("drain", cause, remedy))

    def _exit(self, code: int, error: HeadraceError | None) -> list[Action]:
        if self._exiting is not None:
            return []
        self._exiting = Exit(code, error)
        held = tuple(name for name, stream in self.streams.items() if stream.lease != "none")
        keep = self.settings.common_end and not code and not self.draining
        actions: list[Action] = [Release(held)] if held and not keep else []
        for child in self.children:
            self.children.end(child)
            if self.children[child].ready:
                actions.append(Send(child, Stop()))
        return [*actions, self._exiting]

    def _code_of(self, error: HeadraceError) -> int:
        """The exit code of an engine that an error ends."""
        return 2 if error.kind == "config" and not self._has_run else 1

    # --- what is asked ------------------------------------------------------------------------------------

    def _serve(self) -> list[Action]:
        def allowed(reader: Child, request: SlabRequest) -> bool:
            stream = self._by_reader[reader]  # a request of one that has no stream has been withdrawn
            known = request.seq in stream.ledger.segments
            room = known or stream.ledger.in_flight < MAX_SEGMENTS_PER_STREAM
            return room and bool(self.children.ready("writer"))

        return list(self.grants.serve(allowed))

    def _is_busy(self, child: Child) -> bool:
        """Whether the child has work, so that silence means that it hangs."""
        if child.role == "reader":
            stream = self._by_reader.get(child)
            waits = self.grants.is_waiting(child) or child in self._waiting_for_schema
            return stream is not None and stream.assigned and not stream.reading_done and not waits
        holds_slab = any(slab.holder == child for slab in self.grants.slabs.values())
        segments = (each for stream in self.streams.values() for each in stream.ledger.segments.values())
        return holds_slab or any(
            each.writer == child.index and each.phase.value in ("cut", "publishing") for each in segments
        )


def _replaced(stream: Stream) -> FatalError:
    namespaces = sorted(stream.replaced)
    names = ",".join(each.partition(".")[2] for each in namespaces)
    cause = f"{', '.join(namespaces)} got other documents by a rename or $out, of which there are no events"
    is_named = all(each.partition(".")[0] == stream.spec.database for each in namespaces)
    which = f"--collections {names} " if is_named else ""  # the command knows those of source.database
    remedy = f"Load them: headrace backfill {which}--restart."
    return FatalError(f"follow {stream.name}", cause, remedy)


def _older_than_the_lake(stream: Stream, beyond: str) -> FatalError:
    record = "has no record of it" if stream.ledger.is_new else "does not know of that segment"
    cause = f"the lake holds {beyond}, and the state store {record}: it was lost, or is older than the lake"
    remedy = (
        "Restore the newest state. To begin anew without it, give another sink.url: what lies here stays as it "
        "is, and what happened since its newest object is not captured. Nothing has been written."
    )
    return FatalError(f"resume the stream {stream.name}", cause, remedy)
