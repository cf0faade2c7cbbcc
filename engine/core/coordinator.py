"""All decisions of a running engine, without any of its processes.

The supervisor calls one method for each thing that happens and performs the returned actions in order. Everything
that happens is data (messages from children, answers from the state store, the time), so that a run can be
recorded and replayed.

A message is dispatched to the one component of the coordinator that it concerns, which changes its own state and
returns decisions; then ``_settle`` carries out those that concern a whole stream or the engine, and asks each
component, in a fixed order, what has become possible.

    fleet         which streams are for this engine, and which for others
    lifecycle     the stages of a stream, and what moves them
    leases        who may read a stream, and from which record
    readers       who reads what
    splits        the splits of backfills that wait to be read
    landing       batches, segments, commits
    endings       streams that are done here, or are given up
    schemas       the types of the collections' fields
    replacements  collections whose content was replaced
    oplog         how much of it is left
    tables        those that follow the lake
    children      the processes; grants: their slabs; health: their problems; pressure: their memory
    faults        what follows from their errors and deaths

Any failure of a process or a segment is handled in one way: the stream is interrupted and read again from its
committed position, under a new generation, and its outstanding intents are replayed to the same keys. A stream
that fails too often in a row, or permanently, stops alone; the engine exits when no other is left.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence

from engine.core import messages as msg
from engine.core import store
from engine.core.actions import Action, Child, Exit, Leave, Log, Release, Send
from engine.core.backfill import Progress
from engine.core.children import Children
from engine.core.decisions import Close, Decision, End, Fail, Forget, GiveUp, Interrupt
from engine.core.endings import Endings
from engine.core.faults import Faults
from engine.core.fleet import Fleet
from engine.core.grants import Grants
from engine.core.health import Health
from engine.core.landing import Landing
from engine.core.leases import Leases
from engine.core.ledger import Ledger
from engine.core.lifecycle import Lease, Stage
from engine.core.oplog import Oplog
from engine.core.position import Position
from engine.core.pressure import Pressure
from engine.core.readers import Readers
from engine.core.replacements import Replacements
from engine.core.restarts import Failures
from engine.core.schemas import Schemas
from engine.core.specs import BackfillSpec, MarkSpec, Spec, SplitSpec, StreamSpec
from engine.core.splits import Splits
from engine.core.stream import Settings, Stream
from engine.core.tables import COMMITTER, Tables
from engine.errors import ConfigError, HeadraceError, StateLostError, error_of_kind

MAX_SLABS = 64


class Coordinator:
    """Makes the decisions; see the module's docstring.

    State besides its components': whether it is draining or exiting; ``reloads``, whether it has exited so that
    replaced collections are reloaded.

    Args:
        specs: the change streams, each with a reader of its own.
        rng: for the jitter of delays.
    """

    def __init__(self, settings: Settings, specs: Sequence[StreamSpec], rng: random.Random) -> None:
        self.settings = settings
        self._rng = rng
        readers = [Child("reader", number) for number in range(len(specs) + settings.pool)]
        writers = [Child("writer", number) for number in range(settings.writers)]
        own = {reader: self._new_stream(spec, reader) for reader, spec in zip(readers, specs, strict=False)}
        self.streams: dict[str, Stream] = {each.name: each for each in own.values()}
        committers = [COMMITTER] if settings.tables else []
        self.children = Children([*readers, *writers, *committers], settings.retry, settings.hang_timeout_s, rng)
        self.grants = Grants(settings.arena_size, MAX_SLABS)
        self.readers = Readers(settings, self.streams, self.children, own, readers[len(specs) :])
        self.splits = Splits(settings.pool, self.streams)
        self._replacements = Replacements(settings, self.streams)
        self.fleet = Fleet(settings, self.streams, self.children)
        self._leases = Leases(settings, self.streams, self.children, self.fleet, self._replacements)
        self._schemas = Schemas(settings.max_fields, self.streams, plain=settings.tables)
        self.landing = Landing(
            settings.writers,
            self.streams,
            self.children,
            self.grants,
            self._schemas,
            self.splits,
            self._replacements,
        )
        self._endings = Endings(settings, self.streams, self._leases, self.landing)
        self._faults = Faults(settings, self.streams, self.children, self.readers)
        self._pressure = Pressure(settings.memory_limit, self.children)
        self.health = Health(self.streams, self.children)
        self.oplog = Oplog(self.streams)
        self.tables = Tables(settings, self.streams, self.children)
        self.reloads = False
        self.draining = False
        self._drain_until = 0.0
        self._ticked_at = 0.0
        self._exiting: Exit | None = None

    def _new_stream(self, spec: Spec, reader: Child | None) -> Stream:
        failures = Failures(self.settings.retry, self._rng)
        made = Stream(spec, reader, failures, self.settings.start_at, Ledger())
        made.history_lost, made.lost_at = spec.stream in self.settings.lost, self.settings.lost.get(spec.stream)
        return made

    @property
    def lost(self) -> Mapping[str, Position | None]:
        """The streams whose loss of history has ended the engine."""
        return self._faults.lost

    # --- what happens ------------------------------------------------------------------------------------

    def load(self, specs: Iterable[BackfillSpec], progress: Mapping[str, Progress]) -> None:
        """Add splits and marks to read.

        Args:
            specs: what is left to read of backfills, in order.
            progress: of each collection's backfill so far, by namespace; kept up to date here.
        """
        self.splits.load(specs, progress)

    def start(self, now: float) -> list[Action]:
        """Start all readers and one writer; more writers follow when there is work for them.

        Leases are requested with the next ``tick``.
        """
        self._ticked_at = now
        for child in self.children:
            if child.role == "reader":
                self.children.want(child)
        self.children.want(Child("writer", 0))
        self.tables.start()
        return self.children.start_due(now)

    def tick(self, now: float) -> list[Action]:
        """Time has passed; to be called at least once a second."""
        decisions: list[Decision] = []
        if now - self._ticked_at > max(5.0, self.settings.hang_timeout_s / 4):
            self.children.forgive_silence(now)
            fields = {"for_s": round(now - self._ticked_at, 1)}
            decisions.append(Log("warning", "this process was paused", fields))
        self._ticked_at = now
        decisions += [] if self._exiting else self.fleet.look(now, draining=self.draining)
        decisions += [] if self.draining else self._leases.due(now)
        decisions += self.children.start_due(now)
        decisions += self._leases.renewals(now)
        decisions += self._endings.late(now)
        decisions += self.children.hung(self._is_busy, now)
        if self.draining and now > self._drain_until:
            decisions.append(self._endings.drain_failed())
        if self._exiting is None:
            decisions = [*self.health.look(now), *decisions]
        return self._settle(decisions, now)

    def from_child(self, child: Child, message: msg.FromChild, now: float) -> list[Action]:
        """A message from a child."""
        if not self.children[child].alive:
            return []  # its exit has already been handled; later messages are void
        self.health.servers.heard(child, message)
        match message:
            case msg.Heartbeat():
                self.children.beat(child, message, now)
                return []
            case msg.WriterReady():
                self.children.became_ready(child, now)
                self._faults.sink_seen = True
                return self._settle([], now)
            case msg.ReaderReady():
                self.children.became_ready(child, now)
                self.readers.became_ready(message)
                return self._settle([], now)
            case msg.CommitterReady():
                self.children.became_ready(child, now)
                return self._settle([], now)
            case msg.TablesSeen() | msg.CaughtUp():
                return self._settle(self.tables.report(message, now), now)
            case msg.OplogSeen():
                return [*self.oplog.seen(message, now)]
            case msg.Failed():
                return self._settle(self._faults.failed(child, message, now), now)
            case msg.SlabFreed():
                self.grants.free(message.offset)
                return self._settle([], now)
            case msg.SchemaWanted():
                return self._settle(self._schemas.wanted(child, message), now)
            case msg.Sealed() | msg.Published() | msg.Surveyed():
                return self._settle(self._from_writer(message), now)
            case _:
                return self._settle(self._from_reader(child, message), now)

    def from_store(self, answer: store.FromStore, now: float) -> list[Action]:
        """An answer from the state store."""
        if isinstance(answer, store.StoreSeen):
            self.health.store_seen(answer, now)
            return []
        try:
            decisions = self._answered(answer, now)
        except (ConfigError, StateLostError) as error:  # what was read is damaged, or from a later version
            decisions = [End(error)]
        actions = self._settle(decisions, now)
        return actions + self._retire(now)

    def _retire(self, now: float) -> list[Action]:
        """Drain if the fleet has another selection now: those who follow it take over."""
        if self.fleet.successor is None or self.draining or self._exiting is not None:
            return []
        fields = {"generation": self.fleet.successor.number}
        what = "a newer configuration has been started: leaving the streams to its engines"
        return [Log("warning", what, fields), *self.shut_down(now)]

    def _answered(self, answer: store.FromStore, now: float) -> list[Decision]:
        match answer:
            case store.StoreFailed(kind, operation, cause, remedy):
                return [End(error_of_kind(kind, operation, cause, remedy))]
            case store.FleetSeen():
                return self.fleet.seen(answer, now, draining=self.draining)
            case store.SchemaRead():
                return self._schemas.read(answer, is_ready=self.children[answer.reader].ready)
            case store.StateRead(about, found) if (stream := self.streams.get(about)) is not None:
                return self._leases.overlaps(stream, found)
            case store.StateRead():
                return self._schemas.state_read(answer)
            case store.StoreSeen():
                return []
        stream = self.streams.get(answer.stream)
        if stream is None:  # a closed split
            return []
        match answer:
            case store.LeaseTaken():
                return self._leases.taken(stream, answer, self.readers.common_end)
            case store.LeaseDenied():
                return self._leases.denied(stream, answer, now)
            case store.LeaseLost():
                return self._leases.lost(stream, now)
            case store.RecordLost():
                return self._leases.record_lost(stream, answer, now)
            case store.Written():
                return self.landing.written(stream, answer)

    def shut_down(self, now: float) -> list[Action]:
        """Drain: publish and commit what has been read, then exit."""
        if self.draining:
            return []
        self.draining = True
        self._drain_until = now + self.settings.drain_timeout_s
        decisions: list[Decision] = [Log("info", "draining", {"timeout_s": self.settings.drain_timeout_s})]
        for stream in self.streams.values():
            is_being_read = stream.stage in (Stage.ASSIGNED, Stage.READING)
            if is_being_read and isinstance(stream.spec, SplitSpec) and stream.spec.whole:
                decisions.append(Interrupt(stream))  # it cannot be cut: it is read again next time
            elif stream.is_assigned and stream.reader is not None:
                decisions.append(Send(stream.reader, msg.Finish()))
        return self._settle(decisions, now)

    @property
    def is_at_rest(self) -> bool:
        """Whether no process has rows to hold: no slab is in use, no segment in flight, and no table is made."""
        in_flight = any(stream.ledger.in_flight for stream in self.streams.values())
        return not (self.grants.slabs or in_flight or self.children.wanted("committer"))

    def memory_used(self, used: int, now: float) -> list[Action]:
        """The measured size of the process tree, in bytes: close to the limit, flush early."""
        return [*self._pressure.used(used, self.readers.assigned(), now)]

    def child_exited(
        self, child: Child, code: int | None, now: float, *, out_of_memory: bool = False
    ) -> list[Action]:
        """A child process is dead, and all its messages have been passed in."""
        decisions: list[Decision] = [*self.children.exited(child, code, now, out_of_memory=out_of_memory)]
        self.grants.reclaim(child)
        self.health.servers.exited(child)
        self._schemas.forget(child)
        if child == COMMITTER:
            self.tables.exited()
        if self._exiting is None:
            decisions += self._faults.child_exited(child, now)
        return self._settle(decisions, now)

    # --- messages ----------------------------------------------------------------------------------------

    def _from_reader(
        self,
        reader: Child,
        message: msg.Started | msg.SlabRequest | msg.BatchReady | msg.SegmentCut | msg.Idle | msg.Finished,
    ) -> list[Decision]:
        stream = self.readers.stream_of(reader)
        if stream is None or message.generation != stream.generation:
            if isinstance(message, msg.BatchReady):
                self.grants.free(message.offset)
            return []
        match message:
            case msg.Started():
                return self.readers.started(stream, message)
            case msg.SlabRequest():
                self.grants.ask(reader, message)
                return []
            case msg.BatchReady():
                self._faults.has_run = True
                return self.landing.batch(stream, message)
            case msg.SegmentCut():
                return self.landing.cut(stream, message)
            case msg.Idle():
                self._faults.has_run |= self._faults.sink_seen
                return self.landing.apply(stream, stream.ledger.idle(message.position))
            case msg.Finished():
                stream.life.on("read out")
                stream.ended_at = message.position
                self.readers.free(stream)
                return []

    def _from_writer(self, message: msg.Sealed | msg.Published | msg.Surveyed) -> list[Decision]:
        stream = self.streams.get(message.stream)
        if stream is None or message.generation != stream.generation:
            return []
        if isinstance(message, msg.Surveyed):
            return self._leases.surveyed(stream, message.beyond)
        return self.landing.from_writer(stream, message)

    def _is_busy(self, child: Child) -> bool:
        """Whether the child has work, so that silence means that it hangs."""
        if child.role == "writer":
            return self.landing.is_busy(child)
        if child.role == "committer":
            return True
        stream = self.readers.stream_of(child)
        waits = self.grants.is_waiting(child) or self._schemas.is_waiting(child)
        return stream is not None and stream.stage in (Stage.ASSIGNED, Stage.READING) and not waits

    # --- settling ----------------------------------------------------------------------------------------

    def _settle(self, decisions: Iterable[Decision], now: float) -> list[Action]:
        """Carry out the decisions, then what they have made possible, in the order of a stream's life."""
        actions = self._carry_out(decisions)
        if self._exiting is None:
            for stream in list(self.streams.values()):
                actions += self._carry_out(self._endings.of(stream, draining=self.draining))
            writers = self.children.ready("writer")
            if not self.draining:
                self.splits.open_due(
                    lambda spec: actions.append(self._open(spec)), self.fleet.is_captured_elsewhere
                )
                actions += self._carry_out(self._leases.surveys(writers, now))
                actions += self._carry_out(self.readers.assign_ready(now))
            actions += self.landing.serve(self.readers)
            actions += self._carry_out(self.landing.enlist_writers(now))
        actions += self._carry_out(self._reload_if_due(now))
        return actions + self._carry_out(self._end_if_done())

    def _carry_out(self, decisions: Iterable[Decision]) -> list[Action]:
        actions: list[Action] = []
        for decision in decisions:
            match decision:
                case Interrupt(stream, event):
                    actions += self._drop(stream)
                    stream.life.on(event)
                case Forget(stream):
                    stream.forget_position()
                case Fail(stream, error):
                    actions += self._fail(stream, error)
                case Close(stream, rows):
                    actions += self._close(stream, rows)
                case GiveUp(stream):
                    actions += self._endings.give_up(stream, self._ticked_at)
                case End(error, code):
                    actions += self._exit(self._faults.code_of(error) if code is None else code, error)
                case _:
                    actions.append(decision)
        return actions

    def _open(self, spec: BackfillSpec) -> Action:
        """Ask for the lease of a split or mark."""
        self.streams[spec.stream] = stream = self._new_stream(spec, None)
        return self._leases.ask(stream)

    def _drop(self, stream: Stream) -> list[Action]:
        """Drop everything of a stream that is in flight, and start a new generation."""
        actions: list[Action] = []
        builders = {segment.writer for segment in stream.ledger.segments.values()}
        stream.generation = self.readers.next_generation(stream)
        stream.ledger.restart()
        for writer in self.children.ready("writer"):
            if writer.index in builders:
                actions.append(Send(writer, msg.Abandon(stream.name, stream.generation)))
        if stream.reader is not None:
            self.grants.withdraw(stream.reader)
            if stream.is_assigned and self.children[stream.reader].ready:
                actions.append(Send(stream.reader, msg.Unassign()))
        self.readers.free(stream)
        stream.counters.restarts += stream.is_assigned and stream.give_up_by is None
        stream.surveyor = None
        return actions

    def _fail(self, stream: Stream, error: HeadraceError) -> list[Action]:
        """Stop the stream, which needs an operator; the others continue."""
        stream.error = error
        actions: list[Action] = [Log("error", "stream stopped", {"stream": stream.name, "error": str(error)})]
        actions += self._drop(stream)
        stream.life.on("failed")
        actions += self._carry_out(self._leases.give_back(stream))
        if isinstance(stream.spec, SplitSpec | MarkSpec):
            return actions + self._carry_out(self.splits.failed(stream.spec.namespace))
        if stream.ledger.committed is None:
            actions += self._carry_out(self.splits.leave_covered(stream.spec))
        return actions

    def _close(self, stream: Stream, rows: int) -> list[Action]:
        self.splits.closed(stream, rows)
        self.readers.free(stream)
        del self.streams[stream.name]
        loaded = self._replacements.loaded(stream.spec) if isinstance(stream.spec, MarkSpec) else []
        return [Release((stream.name,)), *self._carry_out(loaded)]

    # --- ending ------------------------------------------------------------------------------------------

    def _reload_if_due(self, now: float) -> list[Decision]:
        """Exit, so that the next run reloads replaced collections; loads in progress are finished first."""
        if self.draining or self._exiting is not None or self.splits.is_left:
            return []
        owed = self._replacements.due(now)
        if not owed:
            return []
        self.reloads = True
        log = Log("info", "starting over to reload replaced collections", {"collections": owed})
        return [log, End(None)]

    def _end_if_done(self) -> list[Decision]:
        streams = self.streams.values()
        errors = [each.error for each in streams if each.error]
        left = self.splits.is_left and not self.draining
        is_over = not left and not any(each.is_open for each in streams)
        done = is_over and (self._faults.sink_seen or self.draining)
        # A handover concerns all streams or none.
        hopeless = bool(errors) and (
            self.settings.common_end or (not left and all(each.error for each in streams))
        )
        if self._exiting is not None or not (done or hopeless):
            return []
        if done and not self.tables.is_caught_up:
            return [*self.tables.catch_up()]
        errors += [self.tables.error] if self.tables.error else []
        code = min(self._faults.code_of(error) for error in errors) if hopeless else int(bool(errors))
        return [End(errors[0] if errors else None, code)]

    def _exit(self, code: int, error: HeadraceError | None) -> list[Action]:
        if self._exiting is not None:
            return []
        self._exiting = Exit(code, error)
        held = tuple(name for name, each in self.streams.items() if each.life.lease is not Lease.FREE)
        # Those leases are for the run that follows: no other engine should continue in between.
        follows = self.reloads or (self.settings.common_end and not code) or bool(self.lost)
        keep = follows and not self.draining
        actions: list[Action] = [Release(held)] if held and not keep else []
        if self.settings.fleet is not None and not keep:
            actions.append(Leave())
        for child in self.children:
            self.children.end(child)
            if self.children[child].ready:
                actions.append(Send(child, msg.Stop()))
        return [*actions, self._exiting]
