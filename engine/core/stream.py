"""One stream of a running engine, and the settings that the coordinator needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct, field

from engine.core.actions import Child
from engine.core.generations import Generation
from engine.core.ledger import Ledger
from engine.core.lifecycle import AT_READER, OPEN, Lease, Lifecycle, Stage
from engine.core.position import Position
from engine.core.problems import Problem
from engine.core.records import StreamRecord
from engine.core.restarts import Failures, RetryPolicy
from engine.core.specs import Spec, StreamSpec
from engine.errors import HeadraceError

# "starting": it will be read once its lease, survey and reader are there; "stalled": it has a problem, see
# ``Stream.problem``; "standby": another engine has its lease, and this one could take over.
StreamState = Literal["starting", "reading", "standby", "stalled", "finished", "failed"]


class Settings(Struct, frozen=True):
    """What the coordinator needs from the configuration.

    Attributes:
        sink: where objects go and how they are laid out; must not change while an intent is outstanding.
        until_caught_up: finish each stream once it is past the server's cluster time at the start.
        pool: the number of readers for splits.
        max_fields: the number of columns that a collection's schema may grow to.
        lost: change streams whose history is known to be lost behind a position: they start over from now, unless
            another engine has done that.
        abandoned: change streams that start over although they were closed, each with the handover that did it.
        common_end: finish all streams at one cluster time, which none of them has passed when it is chosen; the
            leases are kept at the end, so that no other engine moves a stream before it is handed over.
        reload_from: from when on this engine may exit so that replaced collections are reloaded.
        loaded: replaced collections that have been loaded, by namespace, with the cluster time of the load.
        fleet: the selection that this engine shares with others, and its generation; None for an engine that takes
            every stream that it can get.
        capacity: how many change streams it holds at most; 0 for all.
        version: of this engine, for the others to see.
        tables: whether what lands is added to tables.
    """

    writers: int
    arena_size: int
    lease_ttl_s: float
    retry: RetryPolicy
    hang_timeout_s: float
    drain_timeout_s: float
    start_at: str
    on_history_lost: Literal["fail", "snapshot", "now"]
    sink: str
    pool: int = 0
    max_fields: int = 2000
    lost: Mapping[str, Position | None] = {}
    abandoned: dict[str, str] = {}
    until_caught_up: bool = False
    common_end: bool = False
    memory_limit: int = 0
    on_replaced: Literal["reload", "warn", "fail"] = "reload"
    reload_from: float = float("inf")
    loaded: dict[str, int] = {}
    fleet: Generation | None = None
    capacity: int = 0
    version: str = ""
    tables: bool = False


class Counters(Struct):
    """Totals of one stream since this engine started."""

    events_read: int = 0
    events_committed: int = 0
    bytes_read: int = 0
    bytes_landed: int = 0
    objects: int = 0
    segments: int = 0
    dead_letters: int = 0
    truncated_events: int = 0
    rescued_values: int = 0
    restarts: int = 0


class Stream(Struct):
    """One stream of this engine, or one split or mark of a backfill.

    Attributes:
        life: its lease and its stage; nothing else says what it is doing.
        reader: None for a split that is not being read.
        generation: counts the stream's starts; splits share one count.
        acquire_at, held_by: when to ask for the lease again, and who holds it, while another engine does.
        give_up_by: when its lease is released at the latest, because another engine should have it; None if not.
        has_been_read: its reader has opened it before, in this engine: the configuration works.
        ended_at: how far it was read, once its reader is done.
        dropped: intents that cannot be replayed because history was lost, to be removed with the next start.
        written_seq: the last commit that is known to be durable.
        durable_seq: the last commit that is known to be durable because a later intent is; None if there is none.
        surveyor: the writer that surveys the lake for it.
        beyond: an object in the lake that the record did not account for when it was last read.
        epoch: of the lease that was last taken, for the log.
        schemas: the versions in the record, by the schemas' names.
        history_lost: it starts over at ``start_at``, if its record still has the position ``lost_at``.
        replaced: collections whose new content is not in the lake, by namespace, with the time of the replacement.
        trouble: why it was last interrupted, until something is committed.
        problem: what currently keeps it from being read and landed; None for a stream that has failed, which has
            an ``error`` instead.
    """

    spec: Spec
    reader: Child | None
    failures: Failures
    start_at: str
    ledger: Ledger
    life: Lifecycle = field(default_factory=Lifecycle)
    counters: Counters = field(default_factory=Counters)
    record: StreamRecord = StreamRecord()
    generation: int = 0
    acquire_at: float = 0.0
    held_by: str | None = None
    give_up_by: float | None = None
    has_been_read: bool = False
    ended_at: Position | None = None
    dropped: tuple[int, ...] = ()
    error: HeadraceError | None = None
    written_seq: int | None = None
    durable_seq: int | None = None
    surveyor: Child | None = None
    beyond: str | None = None
    epoch: int = 0
    schemas: dict[str, int] = field(default_factory=dict)
    trouble: Problem | None = None
    problem: Problem | None = None
    replaced: dict[str, int] = field(default_factory=dict)
    history_lost: bool = False
    lost_at: Position | None = None

    def forget_position(self) -> None:
        """Start over from now, or from where it was configured to start; segment numbers continue."""
        self.dropped = tuple(self.ledger.intents)
        self.ledger = Ledger(None, max(self.dropped, default=self.ledger.committed_seq))

    @property
    def name(self) -> str:
        """The stream's id."""
        return self.spec.stream

    @property
    def stage(self) -> Stage:
        """How far it has come."""
        return self.life.stage

    @property
    def holds_lease(self) -> bool:
        """Whether its lease is ours."""
        return self.life.lease is Lease.HELD

    @property
    def standing(self) -> Position | None:
        """Its committed position; None if there is none, or if another engine may have moved it since."""
        return self.ledger.committed if self.holds_lease or self.error is not None else None

    @property
    def is_open(self) -> bool:
        """Whether it is still to be read, from its start or further on."""
        return self.life.stage in OPEN

    @property
    def is_assigned(self) -> bool:
        """Whether a reader has it."""
        return self.life.stage in AT_READER

    @property
    def is_captured(self) -> bool:
        """Whether its reader has opened it: nothing that happens now is missed."""
        return self.life.stage in (Stage.READING, Stage.ENDING)

    @property
    def status(self) -> Literal["waiting", "running", "finished", "failed"]:
        """Its stage in one of four words: has it run since its lease was taken, and has it ended?"""
        if self.life.stage is Stage.FAILED:
            return "failed"
        if self.life.stage is Stage.FINISHED:
            return "finished"
        is_running = self.is_assigned or (self.life.stage is Stage.READY and self.has_been_read)
        return "running" if is_running else "waiting"

    @property
    def is_of_backfill(self) -> bool:
        """Whether it is a split or a mark."""
        return not isinstance(self.spec, StreamSpec)

    @property
    def namespace(self) -> str | None:
        """The collection whose backfill it belongs to; None for a change stream."""
        return None if isinstance(self.spec, StreamSpec) else self.spec.namespace

    @property
    def log_level(self) -> Literal["debug", "info"]:
        """The level for routine events: there are thousands of splits."""
        return "debug" if self.is_of_backfill else "info"

    @property
    def selection_changed(self) -> bool:
        """Whether the record was written under another selection than the configured one."""
        return self.record.spec is not None and self.record.spec != self.spec
