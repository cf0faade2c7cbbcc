"""The reader process: turns one change stream, or the splits of a backfill one by one, into slabs.

One loop: receive messages from the supervisor, take a reply from the prefetcher, cut it into segments, decode,
request a slab, fill it, hand it over. State: the assignment, with its segmenter, decoder and prefetcher. Owner:
the loop. While it waits for a slab it takes no reply, which stops the prefetcher, which stops MongoDB.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait

from msgspec.structs import replace

from engine.config import Secret
from engine.config.renewal import renewed
from engine.config.streams import IN_DOUBT, streams_of
from engine.core import messages as msg
from engine.core.position import Position
from engine.core.schema import CollectionSchema, Field, columns_left, grow
from engine.core.segments import Limits, SegmentEnd
from engine.core.specs import MarkSpec, Spec, SplitSpec, StreamSpec, one_collection
from engine.decode.decoder import Decoded, Decoder
from engine.decode.protect import Protection
from engine.decode.schema import SchemaOptions
from engine.errors import HeadraceError, Redactor, TransientError
from engine.logs import log_with, set_level
from engine.processes.assignment import Assignment
from engine.processes.batches import Batches
from engine.processes.figures import counted, work_since
from engine.processes.link import ChildSettings, send_failure
from engine.processes.registry import Registry, Unsettled
from engine.processes.rescue_log import RescueLog
from engine.shared.arena import Arena
from engine.shared.slab import SlabLayout
from engine.source.change_stream import AWAIT_END_MS, AWAIT_MS, ChangeStream
from engine.source.failures import is_refused
from engine.source.oplog import OplogWatch
from engine.source.pace import Pace
from engine.source.prefetch import Prefetcher
from engine.source.presence import absent
from engine.source.reply import Reply
from engine.source.scan import Mark, SplitScan
from engine.source.session import Members, connect, sample, server_time, starting_position, survey
from engine.source.watchable import not_watchable

BEAT_S = 2.0
IDLE_EVERY_S = 10.0

log = logging.getLogger("headrace")


class _Reassigned(Exception):
    """The work in progress is void: the assignment was replaced or withdrawn."""


class Reader:
    """The loop of one reader process."""

    def __init__(self, settings: ChildSettings, connection: Connection, arena: Arena) -> None:
        config = settings.config
        self._settings = settings
        self._connection = connection
        self._arena = arena
        self._connect(config.source.uri)
        backfill = config.backfill
        share = backfill.readers
        limits = backfill.max_documents_per_s / share, backfill.max_bytes_per_s / share
        self._pace = Pace(*limits, backfill.max_lag)
        self._limits = Limits(config.batch.rows, config.batch.bytes, config.batch.interval)
        self._assignment: Assignment | None = None
        self._assigned: msg.Assign | None = None
        self._finish_assigned = False
        self._prefetcher: Prefetcher | None = None
        self._decoder: Decoder | None = None
        self._options = SchemaOptions.of(config.schema, columns=config.sink.format != "bson")
        self._protection = Protection.of(config.schema)
        self._registry = Registry(self._options, self._ask_schema, self._sampled_fields, self._may_hold)
        self._rescue_log = RescueLog()
        self._oplog: OplogWatch | None = None  # from the first change stream on
        self._settling = False
        self._stopping = False
        self._batches = Batches(self._registry.known, arena.size, lambda: self._beat("decoding"))
        self._progress = 0
        self._beat_at = 0.0

    # --- the loop ----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run until told to stop."""
        try:
            ready = survey(self._client)
        except HeadraceError as error:
            if not self._renew(error):
                raise
            ready = survey(self._client)
        self._send(ready)
        while not self._stopping:
            try:
                self._turn()
            except _Reassigned:
                pass
            except HeadraceError as error:
                self._fail(error)

    def _connect(self, uri: Secret) -> None:
        preference = self._settings.config.backfill.read_preference
        self._uri = uri
        self._client = connect(uri)
        self._primary = Members(self._client, uri, "primary")
        self._members = Members(self._client, uri, preference)

    def _renew(self, error: HeadraceError) -> bool:
        """If that is a refusal, and the credentials are others now, connect with these; whether that was so."""
        if not is_refused(error) or (uri := renewed(self._uri)) == self._uri:
            return False
        self._client.close()
        self._connect(uri)
        return True

    def _turn(self) -> None:
        """One turn: start an assignment, process a reply, or wait for something to arrive."""
        self._receive(0.0)
        if self._assigned is not None:
            self._begin(self._assigned)
        assignment, prefetcher = self._assignment, self._prefetcher
        if assignment is None or prefetcher is None:
            self._beat("waiting for an assignment")
            self._receive(BEAT_S)
            return
        self._beat("reading" if not prefetcher.last_error else f"retrying: {prefetcher.last_error}")
        reply = prefetcher.take()
        if reply is not None:
            self._protect(assignment.spec, reply)
            self._take_in(assignment, reply)
        if assignment.held.since is not None and self._must_release(assignment, reply):
            self._release(assignment)
        if assignment.cut_now:
            assignment.cut_now = False
            if not assignment.uncut:
                self._report(assignment, assignment.segmenter.flush("memory"))
        self._report(assignment, assignment.segmenter.expired(time.monotonic()))
        if assignment.finishing and not assignment.segmenter.replaying:
            self._finish(assignment)
        elif reply is None:
            deadlines = [assignment.segmenter.deadline(), assignment.held.deadline()]
            left_s = [deadline - time.monotonic() for deadline in deadlines if deadline is not None]
            timeout_s = min([BEAT_S, *left_s])
            wait([self._connection, prefetcher.fileno()], max(0.0, timeout_s))

    def _receive(self, timeout_s: float) -> None:
        """Take in the supervisor's messages, waiting up to ``timeout_s`` for the first."""
        while self._connection.poll(timeout_s):
            self._note(msg.decode_to_child(self._connection.recv_bytes()))
            timeout_s = 0.0

    def _note(self, message: msg.ToChild) -> msg.Grant | None:
        """Take note of a message; a grant is returned to the caller, who waits for it."""
        match message:
            case msg.Assign():
                self._assigned, self._finish_assigned = message, False
            case msg.Unassign():
                self._drop()
            case msg.Finish() if self._assigned is not None:
                self._finish_assigned = True
            case msg.Finish() if self._assignment is not None:
                self._assignment.finishing = True
            case msg.CutNow(generation) if self._assignment and generation == self._assignment.generation:
                self._assignment.cut_now = True
            case msg.SchemaGiven(database, collection, schema):
                self._registry.known[database, collection] = schema
            case msg.LogLevel(level):
                set_level(level)
            case msg.Stop():
                self._drop()
                self._stopping = True
            case msg.Grant():
                return message
        return None

    # --- assignments -------------------------------------------------------------------------------------

    def _begin(self, assign: msg.Assign) -> None:
        self._drop()
        config = self._settings.config
        start = assign.start
        self._beat("asking MongoDB where to start", at_once=True)
        try:
            if start is None and not isinstance(assign.spec, StreamSpec):
                start = Position(time=server_time(self._client))
            elif start is None:
                start = starting_position(self._client, assign.start_at)
        except HeadraceError as error:
            send_failure(self._connection, error, assign.spec.stream, assign.generation)
            self._renew(error)
            return
        if not assign.generation and assign.spec.stream == streams_of(config.source)[0].stream:
            self._warn_of_absent()
        if self._oplog is None and isinstance(assign.spec, StreamSpec):
            self._oplog = OplogWatch(lambda: self._client)
        if not assign.generation and isinstance(assign.spec, StreamSpec):
            self._report_not_watchable(assign.spec)
        self._assignment = Assignment(assign, start, self._limits)
        self._assignment.finishing = self._finish_assigned
        self._assignment.idle_at = time.monotonic() + IDLE_EVERY_S
        log_with(self._shown)
        self._prefetcher = Prefetcher(self._source(assign, start), config.retry)
        namespace = (assign.spec.database, one_collection(assign.spec))
        self._decoder = Decoder(self._registry, self._options, namespace, assign.spec.covers)

    def _shown(self) -> dict[str, object]:
        """What each log line of this process concerns."""
        if (assignment := self._assignment) is None:
            return {}
        epoch = {"epoch": assignment.epoch} if assignment.epoch else {}
        return {"stream": assignment.spec.stream, "seq": assignment.segmenter.seq} | epoch

    def _report_not_watchable(self, spec: StreamSpec) -> None:
        """Log the collections of a shared stream that will never have an event in it."""
        try:
            for error in not_watchable(self._client, [spec]):
                log.error("a collection has no change streams", extra={"fields": {"error": str(error)}})
        except HeadraceError as error:
            what = "cannot determine whether all collections have change streams"
            log.warning(what, extra={"fields": {"stream": spec.stream, "error": str(error)}})

    def _warn_of_absent(self) -> None:
        """Log what does not exist, once for all streams, which otherwise wait for it silently."""
        for sentence in absent(self._client, self._settings.config.source):
            log.warning(IN_DOUBT, extra={"fields": {"cause": sentence}})

    def _source(self, assign: msg.Assign, start: Position) -> ChangeStream | SplitScan | Mark:
        size = self._settings.budget.reply
        match assign.spec:
            case StreamSpec() as spec:
                wait_ms = AWAIT_MS if assign.until is None else AWAIT_END_MS
                return ChangeStream(self._primary, spec, start, reply_size=size, await_ms=wait_ms, ahead=True)
            case SplitSpec() as spec:
                replay = [intent.end.token for intent in assign.replay]
                return SplitScan(self._members, spec, start, replay, reply_size=size, pace=self._pace)
            case MarkSpec() as spec:
                return Mark(spec, start)

    def _note_started(self, assignment: Assignment) -> None:
        """The stream is open: report it, once, with the start position that was found for it."""
        if not assignment.started:
            assignment.started = True
            self._send(msg.Started(assignment.generation, assignment.found_start))

    def _drop(self) -> None:
        if self._prefetcher is not None:
            self._prefetcher.stop()
        self._assignment = self._assigned = self._prefetcher = self._decoder = None

    def _fail(self, error: HeadraceError) -> None:
        assignment = self._assignment
        assert assignment is not None, error
        send_failure(self._connection, error, assignment.spec.stream, assignment.generation)
        self._drop()
        self._renew(error)

    def _finish(self, assignment: Assignment) -> None:
        self._note_started(assignment)
        self._report(assignment, assignment.segmenter.flush("finish"))
        self._send(msg.Finished(assignment.generation, assignment.scanned))
        self._drop()

    # --- replies -----------------------------------------------------------------------------------------

    def _protect(self, spec: Spec, reply: Reply) -> None:
        """Rewrite a reply's protected fields, before anything else sees them."""
        if self._protection is None or not len(reply):
            return
        self._beat("protecting fields")
        if isinstance(spec, SplitSpec):
            found = self._protection.documents(reply.data, reply.offsets, spec.collection, spec.order)
        else:
            found = self._protection.events(reply.data, reply.offsets)
        reply.data, reply.offsets = found

    def _take_in(self, assignment: Assignment, reply: Reply) -> None:
        """Take a reply, or hold it back if earlier ones are held back."""
        if assignment.held.since is not None:
            assignment.held.add(reply, 0, time.monotonic())
        else:
            self._take(assignment, reply)

    def _must_release(self, assignment: Assignment, reply: Reply | None) -> bool:
        """Whether what is held back must be taken now."""
        nothing_comes = reply is not None and not len(reply) and not reply.is_partial
        at_end = assignment.finishing or (assignment.until is not None and nothing_comes)
        return at_end or assignment.cut_now or assignment.held.is_due(time.monotonic())

    def _release(self, assignment: Assignment) -> None:
        """Settle types by everything that was held back, then take it, as of when it arrived."""
        since = assignment.held.since
        assert since is not None
        self._settling = True
        try:
            for events in assignment.held.parts():
                self._settle(events)
            for reply, row in assignment.held.release():
                if not self._take(assignment, reply, row, since):
                    return
        finally:
            self._settling = False

    def _settle(self, events: Reply) -> None:
        """Let the schemas grow by these events, in the same chunks in which they will be decoded."""
        assert self._decoder is not None
        row = 0
        while row < len(events):
            self._beat("settling types")
            stop = row + self._batches.chunk_rows(events, row)
            self._decoder.settle(events.data, events.offsets[row : stop + 1])
            row = stop

    def _may_hold(self) -> bool:
        """Whether events can be held back: a replay's types are settled, and a split has enough documents."""
        assignment = self._assignment
        if assignment is None or not isinstance(assignment.spec, StreamSpec) or not self._options.columns:
            return False
        return not (self._settling or assignment.segmenter.replaying or assignment.replay_only)

    def _take(self, assignment: Assignment, reply: Reply, row: int = 0, came: float | None = None) -> bool:
        """Take the events of a reply from the given row on, then note how far the server has read.

        From the first row of a new collection on, the reply is held back.

        Args:
            came: when they arrived, if not now.

        Returns:
            Whether what follows is to be taken as well.
        """
        self._progress += 1
        self._note_started(assignment)
        segmenter = assignment.segmenter
        while row < len(reply):
            stop = segmenter.reach(reply, row, self._batches.chunk_rows(reply, row))
            if stop == row and not segmenter.replaying:
                assignment.finishing = True  # the next event is after ``until``
                return False
            if stop > row:
                try:
                    stop = self._take_rows(assignment, reply, row, stop)
                except Unsettled:
                    assignment.held.add(reply, row, time.monotonic())
                    return True
            now = time.monotonic() if came is None else came
            self._report(assignment, segmenter.take(reply, row, stop, now))
            if assignment.replay_only and not segmenter.replaying:
                assignment.finishing = True
                return False
            row = stop
        if reply.is_last and assignment.grown:
            cause = "its documents had unknown fields; they are known now"
            raise TransientError(f"read {assignment.spec.stream}", cause)
        if reply.position is not None:
            assignment.scanned = reply.position
            self._report(assignment, segmenter.scanned(reply.token))
            if reply.is_last or (assignment.replay_only and not segmenter.replaying):
                assignment.finishing = True
                return False
        self._note_idle(assignment, reply)
        return True

    def _take_rows(self, assignment: Assignment, reply: Reply, row: int, stop: int) -> int:
        """Decode some rows and hand them over, after cutting the segment if a collection's schema has grown.

        Returns where it stopped: before ``stop`` if the rows take too much memory as columns.
        """
        assert self._decoder is not None
        began = time.monotonic()
        layout, decoded, stop = self._batches.batch(self._decoder, assignment, reply, row, stop)
        decoding = work_since(began)
        segmenter = assignment.segmenter
        grown = [
            batch
            for batch in decoded.batches
            if assignment.versions.get((batch.database, batch.collection), batch.schema_version)
            != batch.schema_version
        ]
        if grown:
            if assignment.whole:
                assignment.grown = True  # the rest is read for its schema only, then the split is read again
            elif assignment.uncut:
                cause = "a segment that must not be cut has a field that is in no version of the schema"
                raise TransientError("replay a segment", cause)  # it is known from now on: start over
            else:
                self._report(assignment, segmenter.flush("schema"))
        events = counted(decoded.batches)
        self._note_renames(assignment, decoded)
        _tell_of_drops(assignment, events)
        for batch in decoded.batches:
            assignment.versions[batch.database, batch.collection] = batch.schema_version
        raw_bytes = int(reply.offsets[stop] - reply.offsets[row])
        if decoded.dead_letters:
            fields = {"stream": assignment.spec.stream, "events": len(decoded.dead_letters)}
            log.error("events cannot be decoded; they go to _dead_letter", extra={"fields": fields})
        if not assignment.grown:
            rescued = tuple(each for batch in decoded.batches for each in batch.rescued)
            truncated, reply.truncated = reply.truncated, 0  # counted once, with the first of its rows
            self._hand_over(assignment, layout, stop - row, raw_bytes, rescued, truncated, events, decoding)
        return stop

    def _note_renames(self, assignment: Assignment, decoded: Decoded) -> None:
        """Log renames of collections that are captured, and note which collections the open segment replaces."""
        for renamed in decoded.renames:
            source, target = ".".join(renamed.source), ".".join(renamed.target)
            fields = {"stream": assignment.spec.stream, "collection": source, "to": target}
            if assignment.spec.covers(*renamed.target):
                assignment.replaced[target] = msg.Replaced(target, renamed.time)
                log.info("a collection was renamed", extra={"fields": fields})
            elif assignment.spec.covers(*renamed.source):
                what = "a collection was renamed, and is not captured under its new name"
                log.warning(what, extra={"fields": fields})

    def _hand_over(
        self,
        assignment: Assignment,
        layout: SlabLayout,
        rows: int,
        raw_bytes: int,
        rescued: tuple[msg.Rescued, ...],
        truncated: int,
        events: tuple[msg.Counted, ...],
        decoding: msg.Work,
    ) -> None:
        seq = assignment.segmenter.seq
        self._send(msg.SlabRequest(assignment.generation, seq, layout.size))
        grant = self._await_grant()
        layout.write(self._arena.slab(grant.offset, grant.size))
        place = grant.generation, seq, grant.offset, grant.size
        self._send(msg.BatchReady(*place, rows, raw_bytes, rescued, truncated, events, decoding))
        for each in rescued:
            schema = self._registry.known[each.database, each.collection]
            self._rescue_log.note(each, full=not columns_left(schema.fields, self._options.max_fields))

    def _await_grant(self) -> msg.Grant:
        """Wait for the requested slab.

        Raises:
            _Reassigned: the assignment is void, and with it the request.
        """
        while True:
            self._beat("waiting for a slab")
            if not self._connection.poll(BEAT_S):
                continue
            grant = self._note(msg.decode_to_child(self._connection.recv_bytes()))
            if grant is not None:
                return grant
            if self._assigned is not None or self._assignment is None:
                raise _Reassigned

    def _note_idle(self, assignment: Assignment, reply: Reply) -> None:
        """Check whether the stream has caught up or is idle."""
        segmenter = assignment.segmenter
        if segmenter.replaying:
            return
        time_ = assignment.scanned.time
        nothing_new = not len(reply) and not reply.is_partial
        until = assignment.until
        if until is not None and (time_ > until or (time_ == until and nothing_new)):
            assignment.finishing = True
        now = time.monotonic()
        if not segmenter.is_open and now >= assignment.idle_at:
            assignment.idle_at = now + IDLE_EVERY_S
            self._send(msg.Idle(assignment.generation, assignment.scanned))

    def _report(self, assignment: Assignment, end: SegmentEnd | None) -> None:
        if end is not None:
            assignment.versions.clear()
            intent = replace(end.intent, replaced=tuple(assignment.replaced.values()))
            assignment.replaced.clear()
            self._send(msg.SegmentCut(assignment.generation, intent, end.reason))

    # --- messages ----------------------------------------------------------------------------------------

    def _ask_schema(self, database: str, collection: str, fields: tuple[Field, ...]) -> CollectionSchema:
        """The collection's schema with these fields, from the supervisor."""
        self._registry.known.pop((database, collection), None)
        self._send(msg.SchemaWanted(database, collection, fields))
        max_fields = self._options.max_fields
        while (schema := self._registry.known.get((database, collection))) is None or grow(
            schema, fields, max_fields
        ) is not schema:
            self._beat("waiting for a schema")
            if self._connection.poll(BEAT_S):
                self._note(msg.decode_to_child(self._connection.recv_bytes()))
            if self._assigned is not None or self._assignment is None:
                raise _Reassigned
        return schema

    def _sampled_fields(self, database: str, collection: str) -> tuple[tuple[Field, ...], int]:
        """The fields in a sample of the collection, and its number of documents; none if it would mislead."""
        size = self._settings.config.schema.sample
        reshaped = any(set(stage) != {"$match"} for stage in self._settings.config.source.pipeline)
        if not size or reshaped or not self._options.columns or not collection or self._decoder is None:
            return (), 0
        self._beat("sampling", at_once=True)
        found = sample(self._client, database, collection, size)
        if found is None:
            return (), 0
        if self._protection is not None:
            found.data, found.offsets = self._protection.documents(found.data, found.offsets, collection)
        return self._decoder.propose(collection, found.data, found.offsets), len(found)

    def _beat(self, doing: str, *, at_once: bool = False) -> None:
        """Send a heartbeat, every other second or so; ``at_once`` before a call that blocks the loop."""
        now = time.monotonic()
        if at_once or now - self._beat_at >= BEAT_S:
            self._beat_at = now
            fetched, unanswered_s, error, retries = 0, 0.0, None, 0
            if (prefetcher := self._prefetcher) is not None:
                fetched, unanswered_s = prefetcher.progress, prefetcher.unanswered_s
                error = prefetcher.last_error and Redactor()(prefetcher.last_error)
                retries = prefetcher.take_retries()
            progress = self._progress + fetched
            self._send(msg.Heartbeat(progress, doing, time.process_time(), unanswered_s, error, retries))
            if self._oplog is not None and (seen := self._oplog.take()) is not None:
                self._send(seen)

    def _send(self, message: msg.FromReader) -> None:
        self._connection.send_bytes(msg.encode(message))


def _tell_of_drops(assignment: Assignment, events: Sequence[msg.Counted]) -> None:
    """Log the collections and databases that were dropped."""
    for each in events:
        if each.operation in ("drop", "dropDatabase"):
            what = "a collection was dropped" if each.operation == "drop" else "a database was dropped"
            fields = {"collection": f"{each.database}.{each.collection}"} if each.operation == "drop" else {}
            fields |= {"stream": assignment.spec.stream, "database": each.database}
            log.warning(what, extra={"fields": fields})
