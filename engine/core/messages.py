"""All messages between processes, in one place.

Frozen tagged structs, encoded as MessagePack. They carry ids, counts and tokens, never rows: rows are in slabs. A
*generation* counts the starts of a stream within one engine: a message from an older generation than the current
one is answered (a slab is freed) but otherwise ignored.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from engine.core.position import Position
from engine.core.schema import CollectionSchema, Field
from engine.core.specs import Spec, StreamSpec
from engine.errors import FailureKind


class ObjectName(Struct, frozen=True, order=True):
    """One object of a segment, and whose rows it holds."""

    key: str
    database: str = ""
    collection: str = ""
    dead_letter: bool = False


class Replaced(Struct, frozen=True):
    """A collection has documents that its events do not show: another collection was renamed to its name.

    Attributes:
        namespace: the collection's, as MongoDB writes it.
        time: when that happened, as a cluster time.
    """

    namespace: str
    time: int


class Intent(Struct, frozen=True):
    """A sealed segment that may have been published: what a restart must replay to the same keys.

    Attributes:
        first_token: the token of the first event; None for a segment without events.
        end: the segment holds what follows the segment before it, up to and including this position.
        objects: the objects that it is published as.
        rows: the number of events in it.
        replaced: the collections that its events replace, whose content must be loaded.
    """

    seq: int
    first_token: str | None
    end: Position
    objects: tuple[ObjectName, ...] = ()
    rows: int = 0
    replaced: tuple[Replaced, ...] = ()


class Work(Struct, frozen=True):
    """When something was worked on, by the machine's monotonic clock, which all processes share.

    Attributes:
        busy_s: how much of the time in between it took.
    """

    began: float
    ended: float
    busy_s: float

    def plus(self, other: Work | None) -> Work:
        """Both together."""
        if other is None:
            return self
        began, ended = min(self.began, other.began), max(self.ended, other.ended)
        return Work(began, ended, self.busy_s + other.busy_s)


class Counted(Struct, frozen=True):
    """How many events of a batch have this operation, by the collection that they belong to."""

    database: str
    collection: str
    operation: str
    events: int


# --- to a reader -----------------------------------------------------------------------------------------


class Assign(Struct, frozen=True, tag=True):
    """Read this stream from here; drop whatever was being read.

    Attributes:
        start: where to start; None to find it from ``start_at`` and report it in ``Started``.
        start_at: ``now``, ``earliest``, or an RFC 3339 time.
        next_seq: the number of the first segment; None if it follows from the start (``ledger.first_segment``).
        replay: intents to cut at, in order, starting with ``next_seq``.
        until: stop after the last event of this cluster time; None for never.
        replay_only: stop after the last intent.
        epoch: of the lease, for the log.
    """

    spec: Spec
    generation: int
    start: Position | None
    start_at: str
    next_seq: int | None
    replay: tuple[Intent, ...] = ()
    until: int | None = None
    replay_only: bool = False
    epoch: int = 0


class Unassign(Struct, frozen=True, tag=True):
    """Stop reading and drop everything that was not handed over."""


class Grant(Struct, frozen=True, tag=True):
    """The requested slab: bytes ``offset`` to ``offset + size`` of the arena, for the reader to fill."""

    generation: int
    offset: int
    size: int


class CutNow(Struct, frozen=True, tag=True):
    """Cut the open segment; memory is short."""

    generation: int


class Finish(Struct, frozen=True, tag=True):
    """Stop reading, cut the open segment, and report ``Finished``."""


class SchemaGiven(Struct, frozen=True, tag=True):
    """The collection's schema as it is in the state store."""

    database: str
    collection: str
    schema: CollectionSchema


# --- from a reader ---------------------------------------------------------------------------------------


class ReaderReady(Struct, frozen=True, tag=True):
    """Imports are done and MongoDB has answered.

    Attributes:
        deployment: the replica set's name, or ``mongos``.
        server_time: the latest cluster time known to the server.
    """

    deployment: str
    server_version: str
    server_time: int


class OplogSeen(Struct, frozen=True, tag=True):
    """The cluster times of the oplog's first and last entries.

    Attributes:
        error: why they are not known, if they cannot be.
    """

    first: int = 0
    last: int = 0
    error: str | None = None


class Started(Struct, frozen=True, tag=True):
    """The stream is open; ``start`` is where it started, if the assignment left that open."""

    generation: int
    start: Position | None


class SlabRequest(Struct, frozen=True, tag=True):
    """A batch of segment ``seq`` is ready to be written to a slab of ``size`` bytes."""

    generation: int
    seq: int
    size: int


class Rescued(Struct, frozen=True):
    """How many values of a batch are in ``_cdc_rescued``: those of one column, or all that have no column.

    Attributes:
        path: the column's dotted path; None for values without a column.
        column, found: the column's type, and the BSON type of a value that it cannot hold; None if ``path`` is.
    """

    database: str
    collection: str
    values: int
    path: str | None = None
    column: str | None = None
    found: str | None = None


class BatchReady(Struct, frozen=True, tag=True):
    """A slab is filled with events of segment ``seq``; the server could not send ``truncated`` of them whole."""

    generation: int
    seq: int
    offset: int
    size: int
    rows: int
    raw_bytes: int
    rescued: tuple[Rescued, ...] = ()
    truncated: int = 0
    counted: tuple[Counted, ...] = ()
    decoding: Work | None = None


class SegmentCut(Struct, frozen=True, tag=True):
    """Segment ``seq`` is complete. What follows belongs to the next one."""

    generation: int
    intent: Intent
    reason: str


class Idle(Struct, frozen=True, tag=True):
    """No segment is open, and the server has scanned up to ``position``."""

    generation: int
    position: Position


class Finished(Struct, frozen=True, tag=True):
    """Nothing more will follow: the reader was told to finish, ``until`` is passed, or the replay is done."""

    generation: int
    position: Position | None


class SchemaWanted(Struct, frozen=True, tag=True):
    """Request the collection's schema with these fields added; answered by ``SchemaGiven``."""

    database: str
    collection: str
    fields: tuple[Field, ...] = ()


# --- to a writer -----------------------------------------------------------------------------------------


class Batch(Struct, frozen=True, tag=True):
    """Add the slab's rows to the segment; answer ``SlabFreed`` as soon as the slab is no longer needed.

    Attributes:
        old_layout: an earlier version started the segment, in ``naming.OLD_DIRECTORIES``.
        epoch: of the lease, for the log.
    """

    stream: str
    generation: int
    seq: int
    offset: int
    size: int
    old_layout: bool = False
    epoch: int = 0


class Seal(Struct, frozen=True, tag=True):
    """The segment has all its rows. Finish its objects without making them visible; answer ``Sealed``.

    Attributes:
        intent: its objects are those of an earlier attempt: all of them must be written, with or without rows.
        after: the position that the segment follows: it has what comes after it, up to the intent's end.
        line: how often the stream was rewound before.
        replaced: the collections that it and earlier segments replace and whose content has not been loaded.
    """

    stream: str
    generation: int
    intent: Intent
    after: Position = Position()
    line: int = 0
    replaced: tuple[Replaced, ...] = ()


class Publish(Struct, frozen=True, tag=True):
    """The intent is durable: make the objects visible; answer ``Published``."""

    stream: str
    generation: int
    seq: int


class Abandon(Struct, frozen=True, tag=True):
    """Discard every segment of the stream that is older than ``generation``."""

    stream: str
    generation: int


class FlushBuffers(Struct, frozen=True, tag=True):
    """Memory is short: write out what is being buffered."""


class Survey(Struct, frozen=True, tag=True):
    """Look for objects of the stream in the lake that its record does not account for; answer ``Surveyed``.

    Attributes:
        since: no such object can hold events before this cluster time; None if that is not known.
        known: the last segment that the record accounts for.
    """

    spec: StreamSpec
    generation: int
    since: int | None
    known: int


# --- from a writer ---------------------------------------------------------------------------------------


class WriterReady(Struct, frozen=True, tag=True):
    """Imports are done and the sink has answered."""


class SlabFreed(Struct, frozen=True, tag=True):
    """The slab at ``offset`` can be used again."""

    offset: int


class Sealed(Struct, frozen=True, tag=True):
    """The segment is finished but not visible.

    ``size`` is the bytes of its objects, ``dead_letters`` the rows that could not be decoded. ``uploading`` is the
    work on uploads until then, and not part of ``encoding``.
    """

    stream: str
    generation: int
    seq: int
    objects: tuple[ObjectName, ...]
    size: int
    dead_letters: int = 0
    encoding: Work | None = None
    uploading: Work | None = None


class Surveyed(Struct, frozen=True, tag=True):
    """``beyond`` is the key of an object that the record does not account for; None if there is none."""

    stream: str
    generation: int
    beyond: str | None


class Published(Struct, frozen=True, tag=True):
    """All objects of the segment are visible, and the store has acknowledged each."""

    stream: str
    generation: int
    seq: int
    publishing: Work | None = None


# --- to and from the committer ---------------------------------------------------------------------------


class CatchUp(Struct, frozen=True, tag=True):
    """Add to the tables what is committed up to these segments, by stream; answer ``CaughtUp``."""

    committed: dict[str, int]


class CommitterReady(Struct, frozen=True, tag=True):
    """Imports are done and the catalog has answered."""


class TableSeen(Struct, frozen=True):
    """What was added to a table."""

    commits: int = 0
    files: int = 0
    rows: int = 0


class TablesSeen(Struct, frozen=True, tag=True):
    """The tables have been looked at.

    Attributes:
        tables: what was added to each since the last look.
        failed: the tables that lack something, each with the reason; "" stands for all.
        lag_s: how long ago the tables had everything that was committed then.
        pass_s: how long the pass took.
    """

    tables: dict[str, TableSeen]
    failed: dict[str, str]
    lag_s: float
    pass_s: float


class CaughtUp(Struct, frozen=True, tag=True):
    """The tables have everything, except for those in ``failed``, with the reason."""

    failed: dict[str, str]


# --- both ------------------------------------------------------------------------------------------------


class Heartbeat(Struct, frozen=True, tag=True):
    """Sent from the work loop, never from a helper thread.

    Attributes:
        progress: counts units of work; a process that has work but whose progress stands still is hung.
        doing: what the loop is doing, in words.
        cpu_s: user and system time of the process so far.
        unanswered_s: how long the process has been waiting for an answer from its server.
        error: why its latest request to that server failed; None once one has succeeded.
        retries: how many requests have failed and are tried again, since the last heartbeat.
    """

    progress: int
    doing: str
    cpu_s: float
    unanswered_s: float = 0.0
    error: str | None = None
    retries: int = 0


class Failed(Struct, frozen=True, tag=True):
    """An error that the process cannot handle itself; without a stream, the process cannot work at all."""

    kind: FailureKind
    operation: str
    cause: str
    remedy: str
    stream: str | None = None
    generation: int | None = None


class LogLevel(Struct, frozen=True, tag=True):
    """Log from this level on: ``debug``, ``info``, ``warning`` or ``error``."""

    level: str


class Stop(Struct, frozen=True, tag=True):
    """Exit."""


ToReader = Assign | Unassign | Grant | CutNow | Finish | SchemaGiven | LogLevel | Stop
FromReader = (
    ReaderReady
    | OplogSeen
    | Started
    | SlabRequest
    | BatchReady
    | SegmentCut
    | Idle
    | Finished
    | SchemaWanted
    | Heartbeat
    | Failed
)
ToWriter = Batch | Seal | Publish | Abandon | FlushBuffers | Survey | LogLevel | Stop
FromWriter = WriterReady | SlabFreed | Sealed | Published | Surveyed | Heartbeat | Failed
ToCommitter = CatchUp | LogLevel | Stop
FromCommitter = CommitterReady | TablesSeen | CaughtUp | Heartbeat | Failed
FromChild = FromReader | FromWriter | FromCommitter
ToChild = ToReader | ToWriter | ToCommitter

encode = msgspec.msgpack.Encoder().encode
decode_from_child = msgspec.msgpack.Decoder(FromChild).decode
decode_to_child = msgspec.msgpack.Decoder(ToChild).decode
