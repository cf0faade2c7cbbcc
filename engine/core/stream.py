"""One stream of a running engine, and what the coordinator must know of the configuration."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct, field

from engine.core.actions import Child
from engine.core.ledger import Ledger
from engine.core.lifecycle import AT_READER, OPEN, Lease, Lifecycle, Stage
from engine.core.position import Position
from engine.core.problems import Problem
from engine.core.records import StreamRecord
from engine.core.restarts import Failures, RetryPolicy
from engine.core.specs import Spec, StreamSpec
from engine.errors import HeadraceError

# "starting": it will be read when what is on its way is there; "stalled": something is in the way, see
# ``Stream.problem``; "standby": another engine has its lease, and this one could take over.
StreamState = Literal["starting", "reading", "standby", "stalled", "finished", "failed"]


class Settings(Struct, frozen=True):
    """What the coordinator needs of the configuration.

    Attributes:
        sink: where objects go and how they are laid out; must not change under an outstanding intent.
        until_caught_up: finish each stream behind the cluster time that was the server's at the start.
        pool: readers for splits.
        max_fields: columns that a collection's schema may grow to.
        lost: change streams whose history is known to be lost: they begin anew, from now.
        common_end: finish all streams at one cluster time, which none of them has passed when it is chosen; the
            leases are kept at the end, so that nobody moves a stream before it is handed over.
        reload_from: since when this engine may end so that replaced collections are loaded again.
        loaded: collections that were replaced and have been loaded, with the cluster time of that; by namespace.
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
    lost: frozenset[str] = frozenset()
    until_caught_up: bool = False
    common_end: bool = False
    memory_limit: int = 0
    on_replaced: Literal["reload", "warn", "fail"] = "reload"
    reload_from: float = float("inf")
    loaded: dict[str, int] = {}


class Counters(Struct):
    """Totals of one stream since this engine started."""

    events_read: int = 0
    events_committed: int = 0
    bytes_read: int = 0
    bytes_landed: int = 0
    objects: int = 0
    segments: int = 0
    dead_letters: int = 0
    rescued_values: int = 0
    restarts: int = 0


class Stream(Struct):
    """One stream of this engine, or one split or mark of a backfill.

    Attributes:
        life: its lease and its stage; the only part of it that says what it is doing.
        reader: None for a split that is not being read.
        generation: counts the times that the stream was interrupted; of splits, all together.
        acquire_at, held_by: when to ask for the lease again, and who holds it, while another engine does.
        has_been_read: its reader has opened it before, in this engine: the configuration works.
        ended_at: how far it was read, once it is read out.
        dropped: intents that cannot be replayed because history was lost, to be removed with the next start.
        written_seq: the last commit that is known to be durable.
        durable_seq: the last commit that is known to be so because a later intent is; None before anything is.
        surveyor: the writer that surveys the lake for it.
        beyond: an object there that an earlier reading of the record does not account for.
        schemas: the versions that the record tells of, by the schemas' names.
        history_lost: it starts over at ``start_at``, whatever its record says.
        replaced: collections whose new content is not in the lake, with the time of the replacement; by namespace.
        trouble: what it was last interrupted for, until something is committed.
        problem: what keeps it from being read and landed at present; None for a stream that has failed, whose
            ``error`` tells.
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
    has_been_read: bool = False
    ended_at: Position | None = None
    dropped: tuple[int, ...] = ()
    error: HeadraceError | None = None
    written_seq: int | None = None
    durable_seq: int | None = None
    surveyor: Child | None = None
    beyond: str | None = None
    schemas: dict[str, int] = field(default_factory=dict)
    trouble: Problem | None = None
    problem: Problem | None = None
    replaced: dict[str, int] = field(default_factory=dict)
    history_lost: bool = False

    def forget_position(self) -> None:
        """Start over from now, or where it was to start; segment numbers go on."""
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
    def is_open(self) -> bool:
        """Whether it is to be read, or to be read on."""
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
        """The same in four words: has it run since its lease was taken, and has it ended?"""
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
        """The collection whose backfill it is a part of; None for a change stream."""
        return None if isinstance(self.spec, StreamSpec) else self.spec.namespace

    @property
    def log_level(self) -> Literal["debug", "info"]:
        """Of what it does all the time: there are thousands of splits."""
        return "debug" if self.is_of_backfill else "info"

    @property
    def selection_changed(self) -> bool:
        """Whether the record was made under another selection than the configured one."""
        return self.record.spec is not None and self.record.spec != self.spec
