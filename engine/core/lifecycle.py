"""The life of a stream, as tables: its lease, its stage, and the events that move them.

Everything that changes a stream's lease or stage is here; the deciding code calls ``Lifecycle.on`` with an event,
and an event that a table does not allow is a bug. Splits of backfills and marks have the same lifecycle.

The *lease* is the right to write the stream's record: FREE, ASKED for, or HELD. The *stage*:

    WAITING    for the lease
    ACQUIRED   the lease is held; the lake is to be surveyed for objects that the record does not account for
    SURVEYING  a writer is doing so
    READY      to be assigned, once a reader is free and any delay after a failure is over
    ASSIGNED   a reader has been told to read it
    READING    the reader has opened it: whatever happens from now on is captured
    ENDING     the reader is done; its last segments are on their way to the lake
    FINISHED   all its work is committed, or the engine is draining and leaves it as it is
    FAILED     an error that needs an operator has ended it

A stream in any stage but the last two is *open*. Any failure of a process or a segment is handled in one way: the
stream is interrupted, and read again from its committed position.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Literal


class Lease(Enum):
    """The stream's lease, as far as this engine knows."""

    FREE = "free"
    ASKED = "asked"
    HELD = "held"


class Stage(Enum):
    """How far the stream has come; see the table above."""

    WAITING = "waiting"
    ACQUIRED = "acquired"
    SURVEYING = "surveying"
    READY = "ready"
    ASSIGNED = "assigned"
    READING = "reading"
    ENDING = "ending"
    FINISHED = "finished"
    FAILED = "failed"


Event = Literal[
    "lease asked for",
    "lease denied",
    "lease taken",
    "lease lost",
    "lease released",
    "given up",
    "survey started",
    "survey clear",
    "survey doubted",
    "assigned",
    "opened",
    "read out",
    "reopened",
    "interrupted",
    "finished",
    "failed",
]

OPEN = frozenset(Stage) - {Stage.FINISHED, Stage.FAILED}
# The stages in which a reader has the stream.
AT_READER = frozenset({Stage.ASSIGNED, Stage.READING, Stage.ENDING})

_KEEP: Mapping[Lease, Lease] = {each: each for each in Lease}
_IF_HELD: Mapping[Lease, Lease] = {Lease.HELD: Lease.HELD}
_OVER: Mapping[Stage, Stage] = {Stage.FINISHED: Stage.FINISHED, Stage.FAILED: Stage.FAILED}

# For each event: the leases under which it may occur, each with the lease after it; and the same for stages.
TRANSITIONS: Mapping[Event, tuple[Mapping[Lease, Lease], Mapping[Stage, Stage]]] = {
    "lease asked for": ({Lease.FREE: Lease.ASKED}, {Stage.WAITING: Stage.WAITING}),
    "lease denied": ({Lease.ASKED: Lease.FREE}, {Stage.WAITING: Stage.WAITING, **_OVER}),
    "lease taken": ({Lease.ASKED: Lease.HELD}, {Stage.WAITING: Stage.ACQUIRED, **_OVER}),
    "lease lost": (
        {Lease.HELD: Lease.FREE},
        {**dict.fromkeys(OPEN - {Stage.WAITING}, Stage.WAITING), **_OVER},
    ),
    "lease released": ({Lease.HELD: Lease.FREE}, _OVER),
    # For another engine. A reader has drained it, or has not started.
    "given up": (
        {Lease.HELD: Lease.FREE},
        dict.fromkeys((Stage.ACQUIRED, Stage.SURVEYING, Stage.READY, Stage.ENDING), Stage.WAITING),
    ),
    "survey started": (_IF_HELD, {Stage.ACQUIRED: Stage.SURVEYING}),
    # A split needs no survey: it was compared with the lake when its backfill was planned.
    "survey clear": (_IF_HELD, {Stage.SURVEYING: Stage.READY, Stage.ACQUIRED: Stage.READY}),
    # An object that the record does not account for: the record is read once more, which takes the lease again.
    "survey doubted": ({Lease.HELD: Lease.ASKED}, {Stage.SURVEYING: Stage.WAITING}),
    "assigned": (_IF_HELD, {Stage.READY: Stage.ASSIGNED}),
    "opened": (_IF_HELD, {Stage.ASSIGNED: Stage.READING}),
    "read out": (_IF_HELD, {Stage.READING: Stage.ENDING}),
    # Its selection has changed, and the segments of the previous selection are now all committed.
    "reopened": (_IF_HELD, {Stage.ENDING: Stage.READY}),
    "interrupted": (
        _KEEP,
        {
            Stage.WAITING: Stage.WAITING,
            Stage.ACQUIRED: Stage.ACQUIRED,
            Stage.SURVEYING: Stage.ACQUIRED,
            Stage.READY: Stage.READY,
            **dict.fromkeys(AT_READER, Stage.READY),
        },
    ),
    # Before it was assigned, only by a drain.
    "finished": (_KEEP, dict.fromkeys(OPEN - {Stage.ASSIGNED, Stage.READING}, Stage.FINISHED)),
    "failed": (_KEEP, dict.fromkeys(OPEN, Stage.FAILED)),
}


class Lifecycle:
    """Where one stream is in the tables. Owner: the coordinator, through ``Stream``."""

    __slots__ = ("_lease", "_stage")

    def __init__(self) -> None:
        self._lease = Lease.FREE
        self._stage = Stage.WAITING

    def __repr__(self) -> str:
        return f"<Lifecycle lease={self._lease.value} stage={self._stage.value}>"

    @property
    def lease(self) -> Lease:
        """The stream's lease."""
        return self._lease

    @property
    def stage(self) -> Stage:
        """How far the stream has come."""
        return self._stage

    def on(self, event: Event) -> None:
        """Something has happened to the stream."""
        leases, stages = TRANSITIONS[event]
        assert self._lease in leases, f"{event!r} while the lease is {self._lease.value}"
        assert self._stage in stages, f"{event!r} while the stream is {self._stage.value}"
        self._lease, self._stage = leases[self._lease], stages[self._stage]
