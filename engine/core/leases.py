"""Leases, and what must hold before a stream whose lease is ours is read.

A lease that is free or held elsewhere is requested repeatedly; one that is ours is renewed. It comes with the
stream's record, which says where to continue. The record is refused if it is not this stream's, or older than what
is known. Then the lake is surveyed: an object that the record does not account for means that the state was lost,
or is older than the lake. (Or that another engine had the stream in the meantime. So the record is read once more
first: whatever was published before then has left a trace in it.)

State: when leases are to be renewed; everything else is in the streams. Owner: the coordinator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from engine.core import records
from engine.core.actions import Acquire, Child, Log, Release, Renew, Send, Write
from engine.core.backfill import decode_plan, is_end, plan_document
from engine.core.children import Children
from engine.core.decisions import Close, Decision, End, Fail, Interrupt
from engine.core.fleet import Fleet
from engine.core.formats import FORMAT
from engine.core.handover import overlap
from engine.core.ledger import Ledger
from engine.core.lifecycle import Lease, Stage
from engine.core.messages import Survey
from engine.core.naming import number_in, plan_of_split
from engine.core.position import Position
from engine.core.records import StreamRecord, read_record
from engine.core.replacements import Replacements
from engine.core.specs import StreamSpec
from engine.core.store import LeaseDenied, LeaseTaken, RecordLost, Records
from engine.core.stream import Settings, Stream
from engine.errors import ConfigError, FatalError, HeadraceError, StateLostError

MIN_WAIT_S = 0.1


class Leases:
    """The leases of an engine's streams."""

    def __init__(
        self,
        settings: Settings,
        streams: Mapping[str, Stream],
        children: Children,
        fleet: Fleet,
        replacements: Replacements,
    ) -> None:
        self._settings = settings
        self._streams = streams
        self._children = children
        self._fleet = fleet
        self._replacements = replacements
        self._renew_at = 0.0

    # --- asking and keeping -------------------------------------------------------------------------------

    def due(self, now: float) -> list[Decision]:
        """Ask for the leases that are needed and due now."""
        return [
            self.ask(stream)
            for stream in self._streams.values()
            if stream.stage is Stage.WAITING
            and stream.life.lease is Lease.FREE
            and now >= stream.acquire_at
            and self._fleet.wants(stream)
        ]

    def ask(self, stream: Stream) -> Acquire:
        """Ask for one stream's lease; for a split, also whether its plan is still in force."""
        stream.life.on("lease asked for")
        if stream.reader is not None:
            self._children.want(stream.reader)
        return _acquire(stream)

    def renewals(self, now: float) -> list[Decision]:
        """Renew the leases that are held, every third of their duration."""
        if now < self._renew_at:
            return []
        self._renew_at = now + self._settings.lease_ttl_s / 3
        held = tuple(name for name, stream in self._streams.items() if stream.holds_lease)
        return [Renew(held)] if held else []

    def denied(self, stream: Stream, answer: LeaseDenied, now: float) -> list[Decision]:
        """Another engine has the lease; ask again later."""
        stream.life.on("lease denied")
        stream.beyond = None
        stream.acquire_at = now + min(max(answer.expires_in_s, MIN_WAIT_S), self._settings.lease_ttl_s / 3)
        if stream.held_by == answer.holder:
            return []
        stream.held_by = answer.holder
        fields = {
            "stream": stream.name,
            "holder": answer.holder,
            "expires_in_s": round(answer.expires_in_s, 1),
        }
        if answer.holder in self._fleet.members:  # it was faster
            self._fleet.missed()
            return [Log("debug", "another engine of the fleet has taken this stream", fields)]
        return [Log("warning", "another engine runs this stream; waiting for its lease", fields)]

    def lost(self, stream: Stream, now: float) -> list[Decision]:
        """Another engine owns the stream now."""
        if not stream.holds_lease:
            return []
        stream.give_up_by = None
        stream.acquire_at = now + self._settings.lease_ttl_s / 3
        what = "lost the lease: another engine has taken this stream over; standing by"
        return [Log("error", what, {"stream": stream.name}), Interrupt(stream, "lease lost")]

    def give_up(self, stream: Stream) -> list[Decision]:
        """Release the lease of a stream that is not being read: another engine should have it."""
        log = Log("info", "stream given up to another engine", {"stream": stream.name})
        return [Interrupt(stream, "given up"), Release((stream.name,)), log]

    def give_back(self, stream: Stream) -> list[Decision]:
        """Release the lease of a stream that has ended, if it is ours: another engine may be able to run it."""
        if not stream.holds_lease:
            return []
        stream.life.on("lease released")
        return [Release((stream.name,))]

    # --- the record --------------------------------------------------------------------------------------

    def taken(self, stream: Stream, answer: LeaseTaken, common_end: int | None) -> list[Decision]:
        """The lease is ours, and this is the record as of that moment.

        Args:
            common_end: the cluster time up to which all streams are read, once it is chosen.

        Raises:
            ConfigError: the record was written by a later version.
            StateLostError: it is damaged.
        """
        stream.life.on("lease taken")
        stream.held_by = stream.give_up_by = stream.trouble = None
        stream.epoch = answer.epoch
        if not stream.is_open:  # it ended while its lease was being requested
            return self.give_back(stream)
        record = read_record(answer.fields)
        if (refusal := self._refusal(stream, record, common_end)) is not None:
            return [End(refusal)]
        decisions = self._adopt(stream, record)
        if stream.is_of_backfill:
            return decisions + self._start_split(stream, record, answer.document)
        beyond, stream.beyond = stream.beyond, None
        if beyond and (number_in(beyond, stream.name) or 0) > stream.ledger.last_known:
            return [*decisions, Fail(stream, _older_than_the_lake(stream, beyond))]
        if record.intents and record.sink != self._settings.sink:
            return [*decisions, End(self._other_sink(stream, record), 2)]
        if stream.history_lost and not _is_at(record.position, stream.lost_at):
            stream.history_lost = False  # another engine has started it over
        if (stream.history_lost or record.closed) and record.position is not None:
            stream.forget_position()
        return decisions + self._replacements.judge(stream)

    def _adopt(self, stream: Stream, record: StreamRecord) -> list[Decision]:
        """Continue from a record."""
        # ``rows`` as of before this engine: what it has committed itself is counted separately.
        rows_before = max(0, record.rows - stream.counters.events_committed)
        stream.record = replace(record, rows=rows_before)
        stream.surveyor = None
        stream.written_seq = stream.durable_seq = None if record.position is None else record.seq
        stream.schemas = dict(record.schemas)
        stream.ledger = Ledger(record.position, record.seq, record.intents)
        decisions: list[Decision] = []
        if record.format != FORMAT:
            decisions.append(Write(stream.name, stream.generation, records.upgraded(record), "upgrade"))
        return decisions + self._replacements.adopt(stream, record)

    def _start_split(self, stream: Stream, record: StreamRecord, document: str | None) -> list[Decision]:
        """Start a split or mark, unless another engine has read it by now; its record may then even be gone."""
        if is_end(record.position):
            return [Close(stream, record.rows)]
        if record.position is None and (ended := self._without_record(stream, document)) is not None:
            return [ended]
        if record.intents and record.sink != self._settings.sink:
            return [End(self._other_sink(stream, record), 2)]
        stream.life.on("survey clear")
        return []

    def _without_record(self, stream: Stream, document: str | None) -> Close | End | None:
        """How a split or mark without a record ends, if its backfill was finished or replaced; else None.

        Plans are replaced, and never removed: if there is none, it was lost.

        Raises:
            ConfigError: the plan was written by a later version.
            StateLostError: it is damaged.
        """
        if document is None:
            cause = f"the state store has lost the plan of the backfill of {stream.namespace}"
            return End(StateLostError(f"read {stream.name}", cause))
        plan = decode_plan(document)
        is_over = plan.finished or plan.id != plan_of_split(stream.name)
        return Close(stream) if is_over else None

    def record_lost(self, stream: Stream, answer: RecordLost, now: float) -> list[Decision]:
        """The store has lost a record, unless it is that of a split whose backfill is finished or replaced."""
        error = StateLostError(answer.operation, answer.cause, answer.remedy)
        if not stream.is_of_backfill:
            return [End(error)]
        ended = self._without_record(stream, answer.document)
        if not isinstance(ended, Close):
            return [ended or End(error)]
        return [ended] if stream.life.lease is Lease.ASKED else self.lost(stream, now)

    def _refusal(self, stream: Stream, record: StreamRecord, common_end: int | None) -> HeadraceError | None:
        """Why the stream must not continue from this record; None if it may."""
        operation, durable = f"resume the stream {stream.name}", stream.durable_seq
        if record.closed and self._settings.abandoned.get(stream.name, "") != record.handover:
            cause = "another configuration has taken over what this stream covered"
            remedy = "Start with that configuration; to start over, use another state.prefix and sink.url."
            return ConfigError(operation, cause, remedy)
        if record.spec is not None and record.spec.coverage != stream.spec.coverage:
            cause = "its record in the state store is that of a stream that covers something else"
            remedy = "Another engine keeps its state there: use another state.prefix and another sink.url."
            return ConfigError(operation, cause, remedy)
        if durable is not None and (record.position is None or record.seq < durable):
            cause = f"the state store has lost its record: segment {durable} was committed"
            return StateLostError(operation, cause)
        if common_end is not None and record.position is not None and record.position.time > common_end:
            cause = "another engine has moved it past the common end of a handover"
            return FatalError(operation, cause, "Stop the other engine, then start again.")
        return None

    def _other_sink(self, stream: Stream, record: StreamRecord) -> ConfigError:
        cause = (
            f"{len(record.intents)} segment(s) may have been published to {record.sink}, "
            f"and the sink is now {self._settings.sink}"
        )
        remedy = "Start once more with the previous [sink] until it has caught up, then change it."
        return ConfigError(f"resume the stream {stream.name}", cause, remedy)

    def overlaps(self, stream: Stream, found: Records) -> list[Decision]:
        """Compare a stream that has just started with the records of all others.

        If two engines start at the same time, neither finds the other's streams then; but one of them does here,
        before anything has been published.
        """
        spec = stream.spec
        assert isinstance(spec, StreamSpec)
        for other, (fields, holder) in found.items():
            record = read_record(fields)
            if other in self._streams or not isinstance(record.spec, StreamSpec) or record.closed:
                continue
            if overlap(record.spec, spec):
                where = holder.partition("/")[0] or "another engine"
                cause = f"the stream {other} of {where} also captures some of it"
                remedy = (
                    "Give both engines the same configuration, or separate collections; or give this one another "
                    "state.prefix and another sink.url."
                )
                return [End(ConfigError(f"start the stream {stream.name}", cause, remedy))]
        return []

    # --- the survey --------------------------------------------------------------------------------------

    def surveys(self, writers: Sequence[Child], now: float) -> list[Decision]:
        """Request a survey of the lake for every stream that has just been acquired."""
        if not writers:
            return []
        decisions: list[Decision] = []
        for stream in self._streams.values():
            if stream.stage is not Stage.ACQUIRED or now < stream.failures.retry_at:
                continue
            assert isinstance(stream.spec, StreamSpec)
            at = stream.ledger.committed
            is_elsewhere = stream.record.sink != self._settings.sink  # or has another layout
            since = None if at is None or is_elsewhere else at.time
            stream.surveyor = writers[len(decisions) % len(writers)]
            stream.life.on("survey started")
            asked = Survey(stream.spec, stream.generation, since, stream.ledger.last_known)
            decisions.append(Send(stream.surveyor, asked))
        return decisions

    def surveyed(self, stream: Stream, beyond: str | None) -> list[Decision]:
        """The lake was surveyed; an unknown object may also be from an engine that had the stream meanwhile."""
        stream.surveyor = None
        if stream.stage is not Stage.SURVEYING:  # a drain has ended it meanwhile
            return []
        if beyond is None:
            stream.life.on("survey clear")
            return []
        stream.beyond = beyond
        stream.life.on("survey doubted")
        return [_acquire(stream)]


def _is_at(position: Position | None, lost_at: Position | None) -> bool:
    if position is None or lost_at is None:
        return position is None
    return (position.token, position.time) == (lost_at.token, lost_at.time)


def _acquire(stream: Stream) -> Acquire:
    return Acquire(stream.name, plan_document(stream.namespace) if stream.namespace else None)


def _older_than_the_lake(stream: Stream, beyond: str) -> FatalError:
    record = "has no record of it" if stream.ledger.is_new else "does not know of that segment"
    cause = f"the lake holds {beyond}, and the state store {record}: it was lost, or is older than the lake"
    remedy = (
        "Restore the newest state, or stop every engine and make it again from the lake: headrace state rebuild. "
        "Nothing has been written."
    )
    return FatalError(f"resume the stream {stream.name}", cause, remedy)
