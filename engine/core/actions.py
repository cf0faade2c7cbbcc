"""What the coordinator wants done. The supervisor performs it; the simulation plays it."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from engine.core.messages import ToChild
from engine.core.records import Change
from engine.core.schema import Field
from engine.errors import HeadraceError

Role = Literal["reader", "writer"]
# What a write to a stream's record says: where it starts and what it selects; a segment about to be published; a
# committed position; collections that have been loaded again; the record in the present format.
WriteKind = Literal["begin", "intent", "commit", "loaded", "upgrade"]


class Child(Struct, frozen=True, order=True):
    """One child process, by what it does and its number."""

    role: Role
    index: int

    def __str__(self) -> str:
        return f"{self.role}-{self.index}"


class Spawn(Struct, frozen=True):
    """Start this child."""

    child: Child


class Kill(Struct, frozen=True):
    """SIGKILL this child, or give up its start; its exit is reported as any other."""

    child: Child


class Send(Struct, frozen=True):
    """Send this message to this child."""

    child: Child
    message: ToChild


class Acquire(Struct, frozen=True):
    """Ask the state store for the stream's lease; answered by ``LeaseTaken``, ``LeaseDenied`` or ``RecordLost``.

    Attributes:
        document: a shared document to read with it: of a split, the plan.
    """

    stream: str
    document: str | None = None


class Renew(Struct, frozen=True):
    """Renew the leases of these streams; answered only by ``LeaseLost`` or ``RecordLost``."""

    streams: tuple[str, ...]


class Release(Struct, frozen=True):
    """Give these leases back."""

    streams: tuple[str, ...]


class Write(Struct, frozen=True):
    """Write to the stream's record, fenced by its lease; answered by ``Written`` when that is durable.

    The store performs all writes of a stream in the order in which they were asked for.

    Attributes:
        seq: of an intent: its segment; else the last committed segment that the write makes durable, if any.
    """

    stream: str
    generation: int
    change: Change
    kind: WriteKind
    seq: int | None = None


class GrowSchema(Struct, frozen=True):
    """Add these fields to a collection's schema; answered by ``SchemaRead``.

    Attributes:
        min_version: the version that the store must have, because objects were written under it.
        creates: the schema may be made where there is none.
        max_fields: columns that it may grow to.
    """

    reader: Child
    database: str
    collection: str
    fields: tuple[Field, ...]
    min_version: int
    creates: bool
    max_fields: int


class ReadState(Struct, frozen=True):
    """Read all records, and perhaps a shared document; answered by ``StateRead``.

    Attributes:
        about: what they are read for; comes back with the answer.
    """

    about: str
    document: str | None = None


class Log(Struct, frozen=True):
    """Write a line to the log."""

    level: Literal["debug", "info", "warning", "error"]
    event: str
    fields: dict[str, Any] = {}


class Exit(Struct, frozen=True):
    """End the engine, and with it the children that have not been told to stop.

    The code is 0 for done, 1 for failed, 2 for a bad configuration.
    """

    code: int
    error: HeadraceError | None = None


Action = Spawn | Kill | Send | Acquire | Renew | Release | Write | GrowSchema | ReadState | Log | Exit
