"""The actions that the coordinator asks for. The supervisor performs them; the simulation simulates them."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from engine.core.messages import ToChild
from engine.core.records import Change
from engine.core.schema import Field
from engine.core.sharing import Member
from engine.errors import HeadraceError

Role = Literal["reader", "writer", "committer"]
# What a write to a stream's record contains: where it starts and what it selects; a segment about to be published;
# a committed position; collections that have been reloaded; the record in the current format.
WriteKind = Literal["begin", "intent", "commit", "loaded", "upgrade"]


class Child(Struct, frozen=True, order=True):
    """One child process, identified by role and number."""

    role: Role
    index: int

    def __str__(self) -> str:
        return f"{self.role}-{self.index}"


class Spawn(Struct, frozen=True):
    """Start this child."""

    child: Child


class Kill(Struct, frozen=True):
    """SIGKILL this child, or abandon its start; its exit is reported like any other."""

    child: Child


class Send(Struct, frozen=True):
    """Send this message to this child."""

    child: Child
    message: ToChild


class Acquire(Struct, frozen=True):
    """Ask the state store for the stream's lease; answered by ``LeaseTaken``, ``LeaseDenied`` or ``RecordLost``.

    Attributes:
        document: a shared document to read along with it: for a split, its plan.
    """

    stream: str
    document: str | None = None


class Renew(Struct, frozen=True):
    """Renew the leases of these streams; answered only by ``LeaseLost`` or ``RecordLost``."""

    streams: tuple[str, ...]


class Release(Struct, frozen=True):
    """Release these leases."""

    streams: tuple[str, ...]


class Write(Struct, frozen=True):
    """Write to the stream's record, fenced by its lease; answered by ``Written`` once it is durable.

    The store performs all writes of a stream in the order in which they were requested.

    Attributes:
        seq: for an intent, its segment; otherwise the last committed segment that the write makes durable, if any.
    """

    stream: str
    generation: int
    change: Change
    kind: WriteKind
    seq: int | None = None


class GrowSchema(Struct, frozen=True):
    """Add these fields to a collection's schema; answered by ``SchemaRead``.

    Attributes:
        min_version: the lowest version that the store must have, because objects were written under it.
        creates: the schema may be created if there is none.
        max_fields: the number of columns that it may grow to.
        plain: see ``schema.grow``.
    """

    reader: Child
    database: str
    collection: str
    fields: tuple[Field, ...]
    min_version: int
    creates: bool
    max_fields: int
    plain: bool = False


class ReadState(Struct, frozen=True):
    """Read all records, and optionally a shared document; answered by ``StateRead``.

    Attributes:
        about: what they are read for; returned with the answer.
    """

    about: str
    document: str | None = None


class Announce(Struct, frozen=True):
    """Tell the other engines about this one, and see what they say; answered by ``FleetSeen``.

    Attributes:
        document: a shared document to read along with it.
    """

    member: Member
    document: str


class Leave(Struct, frozen=True):
    """Take back what was announced: this engine has ended. Not answered."""


class Log(Struct, frozen=True):
    """Write a line to the log."""

    level: Literal["debug", "info", "warning", "error"]
    event: str
    fields: dict[str, Any] = {}


class Exit(Struct, frozen=True):
    """Exit the engine, along with the children that have not been told to stop.

    The code is 0 for success, 1 for failure, 2 for a bad configuration.
    """

    code: int
    error: HeadraceError | None = None


Action = (
    Spawn
    | Kill
    | Send
    | Acquire
    | Renew
    | Release
    | Write
    | GrowSchema
    | ReadState
    | Announce
    | Leave
    | Log
    | Exit
)
