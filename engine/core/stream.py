"""One stream of a running engine, and what the coordinator must know of the configuration."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from engine.core.actions import Child
from engine.core.ledger import Ledger
from engine.core.messages import StreamSpec
from engine.core.position import Position
from engine.core.problems import Problem
from engine.core.records import StreamRecord
from engine.core.restarts import Failures, RetryPolicy
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
    """One stream of this engine.

    Attributes:
        reader: None for a split that is not being read.
        generation: counts the times that the stream was started over; of splits, all together.
        assigned: a reader has been told to read it.
        reading: its reader has opened it: whatever happens from now on is captured.
        has_been_read: so it was before, in this engine: the configuration serves.
        reading_done, ended_at: the reader has said that nothing more will come, and how far it got.
        dropped: intents that history lost has made unreplayable, to be removed with the next start.
        floors, durable_seq: the last commit that left before each intent; and the last one that is known to be
            durable, because an intent that left later is. None before anything is.
        held_by: who holds the lease, when we do not.
        surveyed: the lake has been looked at, and holds nothing of it that the record does not account for.
        surveyor: the writer that looks at it.
        beyond: an object there that an earlier reading of the record does not account for.
        schemas: the versions that the record tells of, by the schemas' names.
        replaced: collections whose new content is not in the lake, with the time of the replacement; by namespace.
        trouble: what it was last started over for, until something is committed.
        problem: what keeps it from being read and landed at present; None for a stream that has failed, whose
            ``error`` tells.
    """

    spec: StreamSpec
    reader: Child | None
    failures: Failures
    start_at: str
    ledger: Ledger
    counters: Counters
    record: StreamRecord = StreamRecord()
    status: Literal["waiting", "running", "finished", "failed"] = "waiting"
    lease: Literal["none", "asked", "held"] = "none"
    acquire_at: float = 0.0
    generation: int = 0
    assigned: bool = False
    reading: bool = False
    has_been_read: bool = False
    reading_done: bool = False
    ended_at: Position | None = None
    dropped: tuple[int, ...] = ()
    error: HeadraceError | None = None
    committed_at: float = 0.0
    floors: dict[int, int] = {}
    durable_seq: int | None = None
    held_by: str = ""
    surveyed: bool = False
    surveyor: Child | None = None
    beyond: str = ""
    schemas: dict[str, int] = {}
    trouble: Problem | None = None
    problem: Problem | None = None
    replaced: dict[str, int] = {}

    @property
    def name(self) -> str:
        """The stream's id."""
        return self.spec.stream

    @property
    def is_over(self) -> bool:
        """Whether it will not be read any more."""
        return self.status in ("finished", "failed")

    @property
    def log_level(self) -> Literal["debug", "info"]:
        """Of what it does all the time: there are thousands of splits."""
        return "debug" if self.spec.is_split else "info"

    @property
    def selection_changed(self) -> bool:
        """Whether the record was made under another selection than the configured one."""
        return self.record.spec is not None and self.record.spec != self.spec
